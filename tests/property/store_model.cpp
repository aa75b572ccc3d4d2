// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/property/store_shadow.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace store_testing;
using fm::status;

namespace {

/// Plays random calls against a store and its shadow and compares the two after each.
class player {
 public:
  player(const fm::store_options& options, std::uint32_t seed)
      : store_(options), shadow_(options), random_(seed) {}

  void step() {
    switch (below(20)) {
      case 0:
        return open();
      case 1:
        return fork();
      case 2:
        return below(3) == 0 ? close() : truncate();
      case 3:
        return append_chunk();
      case 4:
      case 5:
      case 6:
        return recall();
      case 7:
      case 8:
        return append_index_keys();
      case 16:
      case 17:
        return start();
      case 18:
        return finish();
      case 19:
        return below(3) == 0 ? cancel() : finish();
      default:
        return append();
    }
  }

  void compare() {
    const fm::store_usage usage = store_.usage();
    REQUIRE(usage.fast_bytes <= usage.fast_budget_bytes);
    REQUIRE(usage.fast_peak_bytes <= usage.fast_budget_bytes);
    REQUIRE(usage.backing_reserved_bytes <= usage.backing_budget_bytes);
    REQUIRE(usage.backing_bytes <= usage.backing_reserved_bytes);
    const auto chunk_bytes = fm::chunk_layout(shadow_.g).chunk_bytes();
    REQUIRE(usage.backing_reserved_bytes == std::size_t(shadow_.reserved()) * chunk_bytes);
    REQUIRE(usage.backing_bytes == shadow_.sealed.size() * chunk_bytes);
    REQUIRE(usage.sequences == std::int64_t(shadow_.open.size()));

    const fm::store_counters c = store_.counters(), &e = shadow_.counters;
    REQUIRE(c.chunks_sealed == e.chunks_sealed);
    REQUIRE(c.chunks_written == e.chunks_written);
    REQUIRE(c.bytes_written == e.bytes_written);
    REQUIRE(c.recalls == e.recalls);
    REQUIRE(c.recalls_failed == e.recalls_failed);
    REQUIRE(c.selected == e.selected);
    REQUIRE(c.hits == e.hits);
    REQUIRE(c.recalled == e.recalled);
    REQUIRE(c.refused == e.refused);
    REQUIRE(c.bytes_recalled == e.bytes_recalled);
    REQUIRE(c.recalls_cancelled == e.recalls_cancelled);
    REQUIRE(c.recalls_late == 0);
    REQUIRE(c.copies_on_write == e.copies_on_write);
    REQUIRE(c.faults == e.faults);
    REQUIRE(c.selected == c.hits + c.recalled + c.refused);
    REQUIRE(c.bytes_recalled == c.recalled * std::int64_t(chunk_bytes));
    REQUIRE(c.bytes_written == c.chunks_written * std::int64_t(chunk_bytes));
    for (const auto& [key, q] : shadow_.open) compare_sequence(q);
  }

 private:
  std::int64_t below(std::int64_t n) {
    return std::uniform_int_distribution<std::int64_t>(0, n - 1)(random_);
  }
  shadow_sequence* any() {
    if (shadow_.open.empty()) return nullptr;
    return &std::next(shadow_.open.begin(), below(std::int64_t(shadow_.open.size())))->second;
  }
  void expect(status actual, status expected) {
    const fm::fault why = store_.last_fault();
    CAPTURE(why.what, why.sequence, why.expected, why.actual);
    REQUIRE(std::string(to_string(actual)) == to_string(expected));
    if (expected == status::ok) return;
    ++shadow_.counters.faults;
    REQUIRE(store_.last_fault().code == expected);
  }

  fm::sequence_options random_options(std::int64_t least_tokens) {
    fm::sequence_options o;
    o.max_tokens = least_tokens + 1 + below(30 * shadow_.g.tokens_per_chunk() / 2);
    o.sink_chunks = std::int32_t(below(3));
    o.recent_chunks = std::int32_t(below(4));
    o.max_resident_chunks = below(3) == 0 ? 0 : o.sink_chunks + o.recent_chunks + 2 + below(6);
    return o;
  }

  /// Runs a set-up call that may be refused. What the backing store must refuse is known; the fast tier's
  /// refusal is checked by what it leaves behind.
  template <class Make>
  bool admitted(const fm::sequence_options& o, const Make& make) {
    const fm::store_usage before = store_.usage();
    const bool backing_fits = std::size_t(shadow_.reserved() + shadow_.g.chunks_for(o.max_tokens)) *
                                  fm::chunk_layout(shadow_.g).chunk_bytes() <=
                              shadow_.options.backing_bytes;
    const bool place = std::int32_t(shadow_.open.size()) < shadow_.options.max_sequences;
    try {
      make();
      REQUIRE(backing_fits);
      REQUIRE(place);
      return true;
    } catch (const fm::admission_error& e) {
      const fm::store_usage after = store_.usage();
      REQUIRE(after.fast_bytes == before.fast_bytes);
      REQUIRE(after.backing_reserved_bytes == before.backing_reserved_bytes);
      REQUIRE(after.sequences == before.sequences);
      return false;
    }
  }

  void open() {
    const fm::sequence_options o = random_options(0);
    shadow_sequence q = shadow_.make(o);
    if (!admitted(o, [&] { q.s.handle = store_.open(o); })) return;
    REQUIRE(shadow_.open.emplace(next_key_++, q).second);
  }

  void fork() {
    shadow_sequence* const parent = any();
    if (!parent || parent->next_layer > 0) return;
    const fm::sequence_options o = random_options(parent->s.tokens);
    fm::sequence_handle handle;
    if (!admitted(o, [&] { handle = store_.fork(parent->s.handle, o); })) return;
    shadow_sequence q = shadow_.fork(*parent, o);
    q.s.handle = handle;
    shadow_.open.emplace(next_key_++, q);
  }

  void close() {
    if (shadow_.open.empty()) return;
    const auto at = std::next(shadow_.open.begin(), below(std::int64_t(shadow_.open.size())));
    const fm::sequence_handle handle = at->second.s.handle;
    expect(store_.close(handle), status::ok);
    shadow_.cancel(at->second);
    shadow_.open.erase(at);
    shadow_.forget_unused();
    expect(store_.close(handle), status::stale_sequence);
  }

  void truncate() {
    shadow_sequence* const q = any();
    if (!q) return;
    const std::int64_t length = q->s.tokens;
    std::int64_t to = below(2) == 0 ? below(length + 1) : std::max<std::int64_t>(length - below(9), 0);
    if (below(8) == 0) to = length + 1;
    expect(store_.truncate(q->s.handle, to), to > length ? status::out_of_range : status::ok);
    if (to <= length) shadow_.truncate(*q, to);
  }

  void append() {
    shadow_sequence* const first = any();
    if (!first) return;
    const std::int32_t layer = first->next_layer;
    std::vector<shadow_sequence*> chosen;
    for (auto& [key, q] : shadow_.open)
      if (q.next_layer == layer && (&q == first || below(2) == 0)) chosen.push_back(&q);
    std::shuffle(chosen.begin(), chosen.end(), random_);
    // The layers of one forward pass follow each other, or something else happens between them.
    const std::int32_t end = below(4) == 0 ? layer + 1 : shadow_.g.layers;
    std::vector<fm::batch_item> items;
    std::vector<std::vector<std::uint64_t>> tags;
    status expected = status::ok;
    for (shadow_sequence* q : chosen) {
      const std::int64_t many = below(6) == 0 ? 1 + below(8 * shadow_.g.tokens_per_chunk()) : 1 + below(5);
      const std::int64_t count = layer > 0 ? q->span_tokens : many;
      items.push_back({q->s.handle, q->s.tokens, std::int32_t(count)});
      tags.push_back(layer > 0 ? q->span_tags : new_tags(shadow_.g, q->s, count, std::uint64_t(random_())));
      if (expected == status::ok) expected = shadow_.span_status(*q, count);
    }
    std::vector<std::uint64_t> all;
    for (const auto& t : tags) all.insert(all.end(), t.begin(), t.end());
    for (std::int32_t l = layer; l < end; ++l) {
      const made_rows rows = make_rows(shadow_.g, all, l);
      expect(store_.append(fm::batch(items.data(), items.size()), l, rows.k_view, rows.v_view, host),
             expected);
      if (expected != status::ok) return;
      for (std::size_t i = 0; i < chosen.size(); ++i)
        shadow_.append_layer(*chosen[i], items[i].num_tokens, tags[i]);
    }
  }

  void append_index_keys() {
    shadow_sequence* const q = any();
    if (!q || shadow_.g.index_keys.lanes == 0) return;
    const std::int64_t stream = below(shadow_.g.index_keys.lanes);
    auto& rows = q->keys[std::size_t(stream)];
    const std::int64_t present = std::int64_t(rows.size()) / shadow_.g.index_keys.bytes();
    const std::int64_t count = below(12);
    const bool fits = present + count <= q->options.max_tokens / shadow_.g.index_keys.tokens_per_key;
    const auto keys = make_keys(shadow_.g, count, std::uint64_t(random_()));
    expect(store_.append_index_keys(q->s.handle, std::int32_t(stream), present,
                                    key_view(shadow_.g, keys, count), host),
           fits ? status::ok : status::sequence_full);
    if (fits) rows.insert(rows.end(), keys.begin(), keys.begin() + count * shadow_.g.index_keys.bytes());
  }

  std::vector<fm::chunk_id> random_request(const shadow_sequence& q) {
    std::vector<fm::chunk_id> ids;
    for (int id = 0; id < shadow_.complete(q); ++id)
      if (below(3) != 0) ids.push_back(id);
    if (below(2) == 0) std::shuffle(ids.begin(), ids.end(), random_);
    if (below(2) == 0) ids.resize(ids.size() / 2);
    return ids;
  }

  void start() {
    shadow_sequence* const q = any();
    if (!q) return;
    const auto ids = random_request(*q);
    fm::recall_report r;
    const fm::view<const fm::chunk_id, 1> wanted(ids.data(), ids.size());
    expect(store_.start_recall(q->s.handle, wanted, &r, host),
           q->pending ? status::out_of_order : status::ok);
    if (q->pending) {
      ++shadow_.counters.recalls_failed;
      return;
    }
    same(r, shadow_.start(*q, ids));
    REQUIRE(info(store_, q->s).pending_chunks == q->coming_extra);
    REQUIRE(store_.poll_recall(q->s.handle) == status::ok);
  }

  void finish() {
    shadow_sequence* const q = any();
    if (!q) return;
    fm::recall_report r;
    const auto late = below(2) == 0 ? fm::late_policy::keep : fm::late_policy::fail;
    expect(store_.finish_recall(q->s.handle, late, &r, host), q->pending ? status::ok : status::out_of_order);
    if (q->pending)
      same(r, shadow_.finish(*q));
    else
      ++shadow_.counters.recalls_failed;
  }

  void cancel() {
    shadow_sequence* const q = any();
    if (!q) return;
    expect(store_.cancel_recall(q->s.handle), status::ok);
    shadow_.cancel(*q);
  }

  static void same(const fm::recall_report& r, const fm::recall_report& e) {
    REQUIRE(r.selected == e.selected);
    REQUIRE(r.hits == e.hits);
    REQUIRE(r.recalled == e.recalled);
    REQUIRE(r.refused == e.refused);
    REQUIRE(r.evicted == e.evicted);
    REQUIRE(r.bytes == e.bytes);
  }

  void recall() {
    shadow_sequence* const q = any();
    if (!q) return;
    std::vector<fm::chunk_id> ids = random_request(*q);
    if (below(10) == 0) {
      ids.push_back(shadow_.complete(*q));
      expect(store_testing::recall(store_, q->s, ids), status::out_of_range);
      ++shadow_.counters.recalls_failed;
      return;
    }
    fm::recall_report r;
    expect(store_testing::recall(store_, q->s, ids, &r), status::ok);
    same(r, shadow_.recall(*q, ids));
  }

  void append_chunk() {
    shadow_sequence* const q = any();
    if (!q) return;
    const std::int64_t each = shadow_.g.tokens_per_chunk();
    const std::int64_t count = below(3) == 0 ? 1 + below(each) : each;
    const auto tags = new_tags(shadow_.g, q->s, count, std::uint64_t(random_()));
    auto together = q->s.tags;
    together.insert(together.end(), tags.begin(), tags.end());
    const auto bytes = expected_chunk(shadow_.g, together, q->s.tokens / each);
    const status expected = shadow_.append_chunk_status(*q, count);
    expect(store_.append_chunk(q->s.handle, fm::view<const std::byte, 1>(bytes.data(), bytes.size()), count),
           expected);
    if (expected == status::ok) shadow_.append_chunk(*q, count, tags);
  }

  void compare_sequence(const shadow_sequence& q) {
    const fm::kv_geometry& g = shadow_.g;
    const fm::sequence_info i = info(store_, q.s);
    REQUIRE(i.tokens == q.s.tokens);
    REQUIRE(i.complete_chunks == shadow_.complete(q));
    REQUIRE(i.resident_chunks == std::int64_t(q.resident.size()));
    REQUIRE(i.resident_chunks <= q.quota);

    std::vector<std::uint64_t> tags = q.s.tags;
    tags.insert(tags.end(), q.span_tags.begin(), q.span_tags.end());
    const auto entries = [&](std::int64_t layer) {
      return g.entries_for(q.s.tokens + (layer < q.next_layer ? q.span_tokens : 0));
    };
    for (std::int64_t c = 0; c < g.chunks_for(q.s.tokens + q.span_tokens); ++c)
      REQUIRE(read_chunk(store_, q.s, c) == expected_chunk(g, tags, c, entries));
    for (std::int32_t layer = 0; layer < g.layers; ++layer) compare_layer(q, layer, tags, entries(layer));
    for (std::int32_t s = 0; s < g.index_keys.lanes; ++s) compare_keys(q, s);
  }

  void compare_layer(const shadow_sequence& q, std::int32_t layer, const std::vector<std::uint64_t>& tags,
                     std::int64_t entries) {
    const fm::kv_geometry& g = shadow_.g;
    const fm::resident_set set = resident(store_, q.s, layer);
    REQUIRE(set.tokens == q.s.tokens + (layer < q.next_layer ? q.span_tokens : 0));
    std::int64_t at = 0;
    for (int id : q.resident) {
      const std::int64_t readable =
          std::min<std::int64_t>(entries - id * g.entries_per_chunk, g.entries_per_chunk);
      if (readable <= 0) continue;
      REQUIRE(at < set.count);
      const fm::resident_chunk& chunk = set.chunks[at++];
      REQUIRE(chunk.id == id);
      REQUIRE(chunk.entries == readable);
      REQUIRE(same_entries(g, layer, readable, chunk.data, expected_chunk(g, tags, id)));
    }
    REQUIRE(at == set.count);
  }

  void compare_keys(const shadow_sequence& q, std::int32_t stream) {
    const fm::kv_geometry& g = shadow_.g;
    fm::index_key_pages pages;
    REQUIRE(store_.index_keys(q.s.handle, stream, &pages) == status::ok);
    const auto& rows = q.keys[std::size_t(stream)];
    REQUIRE(pages.keys * g.index_keys.bytes() == std::int64_t(rows.size()));
    const std::int64_t per_page = g.index_keys_per_chunk(), codes = g.index_keys.bytes() - 4;
    for (std::int64_t i = 0; i < pages.keys; ++i) {
      const std::byte* const page = pages.data + i / per_page * per_page * g.index_keys.bytes();
      const std::int64_t slot = i % per_page;
      const std::byte* const row = rows.data() + i * g.index_keys.bytes();
      const bool planar = g.index_keys.layout == fm::index_key_layout::planar;
      const std::byte* const code = planar ? page + slot * codes : page + slot * g.index_keys.bytes();
      const std::byte* const scale = planar ? page + per_page * codes + slot * 4 : code + codes;
      REQUIRE(std::memcmp(code, row, std::size_t(codes)) == 0);
      REQUIRE(std::memcmp(scale, row + codes, 4) == 0);
    }
  }

  fm::tiered_chunk_store store_;
  shadow_store shadow_;
  std::mt19937 random_;
  int next_key_ = 0;
};

}  // namespace

TEST_CASE("after any sequence of calls the store holds, shows and counts what its shadow model does") {
  const auto seed = flashmemory_test::fresh_seed();
  std::mt19937 random(seed);
  const auto pick = [&](std::int32_t from, std::int32_t to) {
    return std::uniform_int_distribution<std::int32_t>(from, to)(random);
  };
  const bool in_file = GENERATE(false, true);
  CAPTURE(seed, in_file);
  for (int round = 0; round < 60; ++round) {
    fm::kv_geometry g;
    g.layers = pick(1, 3);
    g.kv_heads = pick(1, 2);
    g.key_dim = pick(1, 9);
    g.value_dim = pick(1, 9);
    g.type = std::vector<fm::dtype>{fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16}[std::size_t(pick(0, 2))];
    g.entries_per_chunk = pick(1, 5);
    g.tokens_per_entry = pick(0, 2) == 0 ? pick(2, 4) : 1;
    g.index_keys.lanes = pick(0, 2);
    g.index_keys.tokens_per_key = g.entries_per_chunk;
    g.index_keys.dim = pick(1, 8);
    g.index_keys.layout = pick(0, 1) ? fm::index_key_layout::planar : fm::index_key_layout::interleaved;
    if (round % 6 == 5) g = small_v4_geometry(1 << pick(0, 2));
    fm::store_options o;
    o.geometry = g;
    const auto chunk_bytes = fm::chunk_layout(g).chunk_bytes();
    o.fast_bytes = std::size_t(pick(20, 90)) * (chunk_bytes + 64) + 40000;
    o.backing_bytes = std::size_t(pick(30, 120)) * chunk_bytes + std::size_t(pick(0, 60));
    o.max_sequences = pick(1, 5);
    o.transition_chunks = pick(0, 1) * pick(1, 4);
    o.verify_ram = pick(0, 1) == 1;
    temporary_path path;
    if (in_file) o.backing_path = path.string();
    counting_memory memory;
    o.memory = memory.resource();
    CAPTURE(round, g.layers, g.kv_heads, g.entries_per_chunk, g.tokens_per_entry, o.fast_bytes,
            o.backing_bytes, o.max_sequences, o.transition_chunks);
    {
      player p(o, std::uint32_t(random()));
      for (int step = 0; step < 300; ++step) {
        CAPTURE(step);
        p.step();
        p.compare();
      }
    }
    REQUIRE(memory.in_use == 0);
    REQUIRE(memory.blocks.empty());
    REQUIRE(!memory.mismatched);
    REQUIRE(!std::filesystem::exists(path.string()));
  }
}
