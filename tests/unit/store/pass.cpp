// SPDX-License-Identifier: MIT
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

fm::kv_geometry small_chunks(std::int32_t tokens_per_entry) {
  fm::kv_geometry g = toy::geometry(2);
  g.kv_heads = 2;
  g.tokens_per_entry = tokens_per_entry;
  return g;
}

/// A store that is fed by append() and one whose rows are written into its chunks between begin_pass() and
/// commit_pass(), as kernels do.
struct twins {
  fm::kv_geometry geometry;
  fm::tiered_chunk_store appended, written;
  std::vector<fm::sequence_handle> a, b;
  std::vector<std::int64_t> tokens;

  explicit twins(const fm::kv_geometry& g)
      : geometry(g), appended(toy::store_options(g)), written(toy::store_options(g)) {}

  void open(const fm::sequence_options& o) {
    a.push_back(appended.open(o));
    b.push_back(written.open(o));
    tokens.push_back(0);
  }
  static float value(std::size_t sequence, std::int64_t entry, std::int32_t layer, std::int64_t i, bool key) {
    return toy::number(sequence, std::uint64_t(entry), std::uint64_t(layer) + (key ? 0 : 50),
                       std::uint64_t(i));
  }
  fm::batch_item item(const std::vector<fm::sequence_handle>& handles, std::size_t s,
                      std::int32_t count) const {
    return {handles[s], tokens[s], count};
  }

  void append(const std::vector<std::size_t>& who, const std::vector<std::int32_t>& counts) {
    std::vector<fm::batch_item> items;
    for (std::size_t i = 0; i < who.size(); ++i) items.push_back(item(a, who[i], counts[i]));
    for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
      std::vector<float> k, v;
      std::int64_t rows = 0;
      for (std::size_t i = 0; i < who.size(); ++i)
        for (auto e = geometry.entries_for(tokens[who[i]]);
             e < geometry.entries_for(tokens[who[i]] + counts[i]); ++e, ++rows) {
          for (std::int64_t x = 0; x < geometry.kv_heads * geometry.key_dim; ++x)
            k.push_back(value(who[i], e, layer, x, true));
          for (std::int64_t x = 0; x < geometry.kv_heads * geometry.value_dim; ++x)
            v.push_back(value(who[i], e, layer, x, false));
        }
      REQUIRE(appended.append(fm::batch(items.data(), items.size()), layer,
                              fm::view<const float, 3>(k.data(), rows, geometry.kv_heads, geometry.key_dim),
                              fm::view<const float, 3>(v.data(), rows, geometry.kv_heads, geometry.value_dim),
                              toy::host) == status::ok);
    }
  }

  /// What a kernel would do: entry by entry, where the resident set says.
  void write_rows(std::size_t s, std::int32_t count) {
    const fm::chunk_layout layout(geometry);
    for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
      fm::resident_set set;
      REQUIRE(written.resident(b[s], layer, &set) == status::ok);
      REQUIRE(set.tokens == tokens[s] + count);
      for (auto e = geometry.entries_for(tokens[s]); e < geometry.entries_for(tokens[s] + count); ++e) {
        std::int64_t c = 0;
        while (c < set.count && set.chunks[c].id != e / geometry.entries_per_chunk) ++c;
        REQUIRE(c < set.count);
        const std::int64_t row = e % geometry.entries_per_chunk;
        REQUIRE(row < set.chunks[c].entries);
        auto* const chunk = const_cast<std::byte*>(set.chunks[c].data);
        for (std::int32_t h = 0; h < geometry.kv_heads; ++h)
          for (std::int32_t x = 0; x < geometry.key_dim; ++x) {
            const float key = value(s, e, layer, h * geometry.key_dim + x, true);
            const float val = value(s, e, layer, h * geometry.value_dim + x, false);
            std::memcpy(chunk + layout.key_offset(layer, h) + std::size_t(row * geometry.key_dim + x) * 4,
                        &key, 4);
            std::memcpy(chunk + layout.value_offset(layer, h) + std::size_t(row * geometry.value_dim + x) * 4,
                        &val, 4);
          }
      }
    }
  }

  void compare(std::size_t s) const {
    fm::sequence_info x, y;
    REQUIRE(appended.info(a[s], &x) == status::ok);
    REQUIRE(written.info(b[s], &y) == status::ok);
    REQUIRE(x.tokens == y.tokens);
    REQUIRE(x.complete_chunks == y.complete_chunks);
    REQUIRE(x.resident_chunks == y.resident_chunks);
    REQUIRE(toy::resident_ids(appended, a[s]) == toy::resident_ids(written, b[s]));
    std::vector<std::byte> p(fm::chunk_layout(geometry).chunk_bytes()), q(p.size());
    const auto chunks =
        (geometry.entries_for(x.tokens) + geometry.entries_per_chunk - 1) / geometry.entries_per_chunk;
    for (std::int64_t c = 0; c < chunks; ++c) {
      REQUIRE(appended.read_chunk(a[s], fm::chunk_id(c), fm::view<std::byte, 1>(p.data(), p.size())) ==
              status::ok);
      REQUIRE(written.read_chunk(b[s], fm::chunk_id(c), fm::view<std::byte, 1>(q.data(), q.size())) ==
              status::ok);
      REQUIRE(p == q);
    }
  }
};

fm::sequence_options options(std::int64_t max_tokens, std::int64_t quota) {
  fm::sequence_options o;
  o.max_tokens = max_tokens;
  o.max_resident_chunks = quota;
  return o;
}

}  // namespace

TEST_CASE("passes whose rows are written into the chunks leave the store as append() does", "[store][pass]") {
  const std::int32_t tokens_per_entry = GENERATE(1, 4);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(tokens_per_entry, seed);
  std::mt19937 random(seed);
  twins t(small_chunks(tokens_per_entry));
  for (int i = 0; i < 5; ++i) t.open(options(400 * tokens_per_entry, i == 0 ? 0 : 24));
  for (int step = 0; step < 300; ++step) {
    std::vector<std::size_t> who;
    std::vector<std::int32_t> counts;
    for (std::size_t s = 0; s < 5; ++s)
      if (random() % 4 != 0 && t.tokens[s] + 3 <= 400 * tokens_per_entry) {
        who.push_back(s);
        counts.push_back(std::int32_t(1 + random() % 3));
      }
    std::vector<fm::batch_item> items;
    for (std::size_t i = 0; i < who.size(); ++i) items.push_back(t.item(t.b, who[i], counts[i]));
    const fm::batch batch(items.data(), items.size());
    t.append(who, counts);
    REQUIRE(t.written.begin_pass(batch, toy::host) == status::ok);
    if (random() % 8 == 0) {  // given up, and begun anew
      for (const auto& item : items) REQUIRE(t.written.truncate(item.sequence, item.position) == status::ok);
      REQUIRE(t.written.begin_pass(batch, toy::host) == status::ok);
    }
    for (std::size_t i = 0; i < who.size(); ++i) t.write_rows(who[i], counts[i]);
    REQUIRE(t.written.commit_pass(batch, false, toy::host) == status::ok);
    for (std::size_t i = 0; i < who.size(); ++i) t.tokens[who[i]] += counts[i];
    if (step % 10 == 0)
      for (std::size_t s = 0; s < 5; ++s) {  // all, or one that is left out for long fills its quota
        // Recalls keep the quota free for what is to come.
        std::vector<fm::chunk_id> some;
        const auto complete = t.geometry.entries_for(t.tokens[s]) / t.geometry.entries_per_chunk;
        for (std::int64_t c = 0; c < complete && some.size() < 3; c += 1 + std::int64_t(random() % 4))
          some.push_back(fm::chunk_id(c));
        const fm::view<const fm::chunk_id, 1> chunks(some.data(), some.size());
        REQUIRE(t.appended.recall(t.a[s], chunks, nullptr, toy::host) == status::ok);
        REQUIRE(t.written.recall(t.b[s], chunks, nullptr, toy::host) == status::ok);
      }
    if (step % 25 == 24)
      for (std::size_t s = 0; s < 5; ++s) t.compare(s);
  }
  CHECK(t.appended.counters().chunks_sealed == t.written.counters().chunks_sealed);
  CHECK(t.written.counters().faults == 0);
}

TEST_CASE("a set that is said to be unchanged has the chunks it had, and a change is never missed",
          "[store][pass]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  twins t(small_chunks(1));
  t.open(options(600, 30));
  const auto& store = t.written;
  const auto handle = t.b[0];
  struct look {
    std::uint64_t version = 0;
    std::vector<fm::chunk_id> ids;
    std::vector<const std::byte*> data;
  } looks[2];
  std::int64_t same = 0, other = 0, recalled_at = 0;
  for (int step = 0; step < 400 && t.tokens[0] + 3 < 600; ++step) {
    const fm::batch_item item{handle, t.tokens[0], std::int32_t(1 + random() % 3)};
    REQUIRE(t.written.begin_pass(fm::batch(&item, 1), toy::host) == status::ok);
    const auto check = [&](look& before) {
      fm::resident_set peeked, set;
      REQUIRE(store.resident(handle, 0, &peeked, before.version) == status::ok);
      REQUIRE(store.resident(handle, 0, &set) == status::ok);
      REQUIRE(peeked.version == set.version);
      REQUIRE(set.version != 0);
      const bool unchanged = peeked.version == before.version;
      REQUIRE(peeked.count == set.count);
      REQUIRE(peeked.tokens == set.tokens);
      look now;
      now.version = set.version;
      for (std::int64_t c = 0; c < set.count; ++c) {
        REQUIRE(peeked.chunks[c].id == set.chunks[c].id);
        REQUIRE(peeked.chunks[c].entries ==
                std::min<std::int64_t>(8, set.tokens - std::int64_t{set.chunks[c].id} * 8));
        now.ids.push_back(set.chunks[c].id);
        now.data.push_back(set.chunks[c].data);
      }
      if (unchanged) {
        REQUIRE(now.ids == before.ids);
        REQUIRE(now.data == before.data);
      }
      ++(unchanged ? same : other);
      before = now;
    };
    check(looks[0]);  // within a pass
    if (random() % 10 == 0) {
      REQUIRE(t.written.truncate(handle, t.tokens[0]) == status::ok);
      continue;
    }
    t.write_rows(0, item.num_tokens);
    REQUIRE(t.written.commit_pass(fm::batch(&item, 1), false, toy::host) == status::ok);
    t.tokens[0] += item.num_tokens;
    if (random() % 3 == 0) check(looks[1]);  // between passes
    if (random() % 12 == 0 ||
        t.tokens[0] > recalled_at + 100) {  // the quota has room for 30 chunks of 8 tokens
      recalled_at = t.tokens[0];
      std::vector<fm::chunk_id> some;
      for (std::int64_t c = 0; c < t.tokens[0] / 8 && some.size() < 4; c += 1 + std::int64_t(random() % 5))
        some.push_back(fm::chunk_id(c));
      REQUIRE(t.written.recall(handle, fm::view<const fm::chunk_id, 1>(some.data(), some.size()), nullptr,
                               toy::host) == status::ok);
    }
    if (random() % 15 == 0 && t.tokens[0] > 10) {
      t.tokens[0] -= std::int64_t(random() % 10);
      REQUIRE(t.written.truncate(handle, t.tokens[0]) == status::ok);
    }
  }
  CHECK(same > 50);
  CHECK(other > 50);
  fm::resident_set none;
  REQUIRE(t.written.close(handle) == status::ok);
  CHECK(store.resident(handle, 0, &none, looks[0].version) == status::stale_sequence);
}

TEST_CASE("a pass that is begun shuts out others, and one that is not cannot be committed", "[store][pass]") {
  twins t(small_chunks(1));
  t.open(options(200, 0));
  t.open(options(200, 0));
  t.append({0}, {5});
  std::vector<fm::batch_item> items{{t.b[0], 0, 5}, {t.b[1], 0, 2}};
  const fm::batch both(items.data(), 2), one(items.data(), 1);
  CHECK(t.written.commit_pass(both, false, toy::host) == status::out_of_order);
  REQUIRE(t.written.begin_pass(both, toy::host) == status::ok);
  CHECK(t.written.begin_pass(one, toy::host) == status::out_of_order);
  const std::vector<float> rows(64 * 5, 1.0f);
  const fm::view<const float, 3> k(rows.data(), 5, 2, 16);
  for (std::int32_t layer = 0; layer < 2; ++layer)
    CHECK(t.written.append(one, layer, k, k, toy::host) == status::out_of_order);
  items[0].num_tokens = 4;
  CHECK(t.written.commit_pass(both, false, toy::host) == status::out_of_order);
  items[0].num_tokens = 5;
  items[1].position = 3;
  CHECK(t.written.commit_pass(both, false, toy::host) == status::out_of_order);
  items[1].position = 0;
  CHECK(t.written.commit_pass(both, true, toy::host) == status::ok);
  fm::index_key_pages pages;
  REQUIRE(t.written.index_keys(t.b[0], 1, &pages) == status::ok);
  CHECK(pages.keys == 1);  // of 5 tokens, 4 a key
  CHECK(t.written.commit_pass(both, false, toy::host) == status::out_of_order);
  items[0] = items[1] = {t.b[0], 5, 1};
  CHECK(t.written.begin_pass(both, toy::host) == status::bad_argument);
  fm::sequence_info info;
  REQUIRE(t.written.info(t.b[0], &info) == status::ok);
  CHECK(info.tokens == 5);
}

TEST_CASE("index keys of a pass are committed only where those before them are there", "[store][pass]") {
  twins t(small_chunks(1));
  t.open(options(200, 0));
  fm::batch_item item{t.b[0], 0, 6};
  const fm::batch one(&item, 1);
  REQUIRE(t.written.begin_pass(one, toy::host) == status::ok);
  REQUIRE(t.written.commit_pass(one, false, toy::host) == status::ok);
  item = {t.b[0], 6, 3};
  REQUIRE(t.written.begin_pass(one, toy::host) == status::ok);
  CHECK(t.written.commit_pass(one, true, toy::host) == status::out_of_order);
  CHECK(t.written.last_fault().expected == 1);
  CHECK(t.written.last_fault().actual == 0);
  CHECK(t.written.last_fault().lane == 0);
  CHECK(t.written.commit_pass(one, false, toy::host) == status::ok);
}

TEST_CASE("what has no slot to be written to is refused before anything has changed", "[store][pass]") {
  twins t(small_chunks(1));
  t.open(options(400, 8));
  t.append({0}, {3});
  fm::batch_item item{t.b[0], 0, 80};
  const fm::batch one(&item, 1);
  CHECK(t.written.begin_pass(one, toy::host) == status::unsupported);
  CHECK(t.written.last_fault().chunk == 1);
  item.num_tokens = 401;
  CHECK(t.written.begin_pass(one, toy::host) == status::sequence_full);
  item.num_tokens = 3;
  REQUIRE(t.written.begin_pass(one, toy::host) == status::ok);
  t.write_rows(0, 3);
  REQUIRE(t.written.commit_pass(one, false, toy::host) == status::ok);
  t.tokens[0] = 3;
  t.compare(0);
}
