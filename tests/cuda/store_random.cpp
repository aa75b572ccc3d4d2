// SPDX-License-Identifier: MIT
#include "tests/cuda/store_device.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace store_testing;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

struct live {
  fm::sequence_handle host, device;
  engine_sequence model;
  std::int64_t max_tokens = 0;
};

/// Makes the same random calls on a store in host memory and one on the device.
class twins {
 public:
  twins(const fm::store_options& options, const fm::store_options& there,
        const fm::cuda::device_store_options& how, std::uint32_t seed, std::size_t most)
      : host_(options),
        device_(fm::cuda::make_store(there, {}, how)),
        ring_(std::size_t{24} << 20),
        random_(seed),
        most_(most) {}

  void step() {
    switch (below(18)) {
      case 0:
      case 1:
        return open();
      case 2:
        return fork();
      case 3:
        return below(3) == 0 ? close() : truncate();
      case 4:
        return append_chunk();
      case 5:
      case 6:
        return recall();
      case 7:
      case 8:
        return start();
      case 9:
        return finish();
      case 10:
      case 11:
        return append_index_keys();
      default:
        return append();
    }
  }

  void compare() {
    const auto a = host_.counters(), b = device_->counters();
    REQUIRE(a.chunks_sealed == b.chunks_sealed);
    REQUIRE(a.bytes_written == b.bytes_written);
    REQUIRE(a.recalls == b.recalls);
    REQUIRE(a.selected == b.selected);
    REQUIRE(a.hits == b.hits);
    REQUIRE(a.recalled == b.recalled);
    REQUIRE(a.refused == b.refused);
    REQUIRE(a.recalls_cancelled == b.recalls_cancelled);
    REQUIRE(a.copies_on_write == b.copies_on_write);
    REQUIRE(a.faults == b.faults);
    REQUIRE(b.selected == b.hits + b.recalled + b.refused);
    const auto u = device_->usage();
    REQUIRE(u.fast_bytes <= u.fast_budget_bytes);
    REQUIRE(u.backing_bytes == host_.usage().backing_bytes);
    for (const live& s : all_) compare(s);
  }

  /// Every byte that can be read, by both ways.
  void compare(const live& s) {
    const auto& g = host_.geometry();
    const auto bytes = fm::chunk_layout(g).chunk_bytes();
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      fm::resident_set a, b;
      REQUIRE(host_.resident(s.host, layer, &a) == status::ok);
      REQUIRE(device_->resident(s.device, layer, &b) == status::ok);
      REQUIRE(a.count == b.count);
      REQUIRE(a.tokens == b.tokens);
      for (std::int64_t i = 0; i < a.count; ++i) {
        REQUIRE(a.chunks[i].id == b.chunks[i].id);
        REQUIRE(a.chunks[i].entries == b.chunks[i].entries);
      }
    }
    const std::int64_t chunks = g.chunks_for(s.model.tokens);
    for (std::int64_t c = 0; c < chunks; ++c) {
      std::vector<std::byte> a(bytes), b(bytes);
      REQUIRE(host_.read_chunk(s.host, fm::chunk_id(c), fm::view<std::byte, 1>(a.data(), bytes)) ==
              status::ok);
      REQUIRE(device_->read_chunk(s.device, fm::chunk_id(c), fm::view<std::byte, 1>(b.data(), bytes)) ==
              status::ok);
      REQUIRE(a == b);
    }
    fm::resident_set set;
    REQUIRE(device_->resident(s.device, g.layers - 1, &set) == status::ok);
    for (std::int64_t i = 0; i < set.count; ++i) {
      std::vector<std::byte> a(bytes);
      REQUIRE(host_.read_chunk(s.host, set.chunks[i].id, fm::view<std::byte, 1>(a.data(), bytes)) ==
              status::ok);
      if (set.chunks[i].entries == g.entries_per_chunk) REQUIRE(bytes_at(set.chunks[i].data, bytes) == a);
    }
    for (std::int32_t k = 0; k < g.index_keys.lanes; ++k) {
      fm::index_key_pages a, b;
      REQUIRE(host_.index_keys(s.host, k, &a) == status::ok);
      REQUIRE(device_->index_keys(s.device, k, &b) == status::ok);
      REQUIRE(a.keys == b.keys);
      if (a.keys == 0) continue;
      // Whole pages: what is not there yet reads as zero on both.
      const auto pages = std::size_t((a.keys + g.index_keys_per_chunk() - 1) / g.index_keys_per_chunk());
      const std::size_t size = pages * fm::chunk_layout(g).index_key_page_bytes();
      REQUIRE(bytes_at(b.data, size) == std::vector<std::byte>(a.data, a.data + size));
    }
  }

  void settle() { stream_[0].wait(), stream_[1].wait(); }

 private:
  std::int64_t below(std::int64_t n) {
    return std::uniform_int_distribution<std::int64_t>(0, n - 1)(random_);
  }
  live* any() { return all_.empty() ? nullptr : &all_[std::size_t(below(std::int64_t(all_.size())))]; }
  /// Mostly one stream, as engines do, now and then another.
  fm::stream_ref stream() { return stream_[below(8) == 0].ref(); }

  fm::sequence_options random_options(std::int64_t least) {
    const std::int64_t each = host_.geometry().tokens_per_chunk();
    const auto sink = std::int32_t(below(3)), recent = std::int32_t(below(3));
    return tokens(least + 1 + below(24 * each), below(4) == 0 ? 0 : sink + recent + 2 + below(6), sink,
                  recent);
  }

  template <class Make>
  static bool admitted(const Make& make) {
    try {
      make();
      return true;
    } catch (const fm::admission_error&) {
      return false;
    }
  }

  void open() {
    if (all_.size() >= most_) return;
    const auto o = random_options(0);
    live s;
    s.max_tokens = o.max_tokens;
    if (!admitted([&] { s.host = host_.open(o); })) return;
    s.device = device_->open(o);
    all_.push_back(s);
  }

  void fork() {
    live* const parent = any();
    if (!parent || all_.size() >= most_) return;
    live child = *parent;
    const auto o = random_options(parent->model.tokens);
    child.max_tokens = o.max_tokens;
    if (!admitted([&] { child.host = host_.fork(parent->host, o); })) return;
    child.device = device_->fork(parent->device, o);
    all_.push_back(child);
  }

  void close() {
    if (all_.empty()) return;
    const auto at = below(std::int64_t(all_.size()));
    REQUIRE(host_.close(all_[std::size_t(at)].host) == status::ok);
    REQUIRE(device_->close(all_[std::size_t(at)].device) == status::ok);
    all_.erase(all_.begin() + at);
  }

  void truncate() {
    live* const s = any();
    if (!s) return;
    const std::int64_t length = s->model.tokens;
    const std::int64_t to = below(3) == 0 ? below(length + 1) : std::max<std::int64_t>(length - below(7), 0);
    REQUIRE(host_.truncate(s->host, to) == status::ok);
    REQUIRE(device_->truncate(s->device, to) == status::ok);
    s->model.tokens = to;
    s->model.tags.resize(std::size_t(host_.geometry().entries_for(to)));
  }

  void append() {
    if (all_.empty()) return;
    const auto& g = host_.geometry();
    std::vector<live*> chosen;
    for (live& s : all_)
      if (below(3) != 0) chosen.push_back(&s);
    std::shuffle(chosen.begin(), chosen.end(), random_);
    std::vector<fm::batch_item> host_items, device_items;
    std::vector<std::uint64_t> tags;
    std::vector<std::int64_t> entries;
    for (live* s : chosen) {
      const std::int64_t count = below(6) == 0 ? 1 + below(6 * g.tokens_per_chunk()) : 1 + below(3);
      host_items.push_back({s->host, s->model.tokens, std::int32_t(count)});
      device_items.push_back({s->device, s->model.tokens, std::int32_t(count)});
      const auto mine = new_tags(g, s->model, count, std::uint64_t(random_()));
      entries.push_back(std::int64_t(mine.size()));
      tags.insert(tags.end(), mine.begin(), mine.end());
    }
    // In a type of their own now and then: K, V or both in f32, rounded by the store.
    const bool k32 = below(3) == 0, v32 = below(3) == 0;
    const auto on = stream();
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      const made_rows rows = make_rows(g, tags, layer);
      std::vector<float> wide_k, wide_v;
      const auto widened = [&](const fm::const_tensor<3>& t, std::vector<float>& to) {
        to.resize(std::size_t(t.shape[0] * t.shape[1] * t.shape[2]) + 1);
        for (std::size_t i = 0; i + 1 < to.size(); ++i) {
          const std::uint64_t bits = mixed(std::uint64_t(i) + tags.size() * 977 + std::uint64_t(layer));
          const auto word = std::uint32_t(bits);
          std::memcpy(&to[i], &word, 4);  // any bits, NaNs and subnormals included
        }
        return fm::const_tensor<3>(to.data(), fm::dtype::f32, t.shape[0], t.shape[1], t.shape[2]);
      };
      const auto k = k32 ? widened(rows.k_view, wide_k) : rows.k_view;
      const auto v = v32 ? widened(rows.v_view, wide_v) : rows.v_view;
      const auto expected =
          host_.append(fm::batch(host_items.data(), host_items.size()), layer, k, v, store_testing::host);
      const auto actual = append_on_device(*device_, fm::batch(device_items.data(), device_items.size()),
                                           layer, k, v, ring_, on);
      REQUIRE(std::string(to_string(actual)) == to_string(expected));
      if (expected != status::ok) return;
    }
    std::size_t at = 0;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      chosen[i]->model.tokens += host_items[i].num_tokens;
      for (std::int64_t e = 0; e < entries[i]; ++e) chosen[i]->model.tags.push_back(tags[at++]);
    }
  }

  void append_chunk() {
    live* const s = any();
    const auto& g = host_.geometry();
    if (!s || s->model.tokens % g.tokens_per_chunk() != 0) return;
    std::vector<std::byte> bytes(fm::chunk_layout(g).chunk_bytes());
    for (auto& b : bytes) b = std::byte(random_());
    const auto n = g.tokens_per_chunk();
    const fm::view<const std::byte, 1> view(bytes.data(), bytes.size());
    const auto expected = host_.append_chunk(s->host, view, n);
    REQUIRE(device_->append_chunk(s->device, view, n) == expected);
    if (expected != status::ok) return;
    s->model.tokens += n;
    s->model.tags.resize(std::size_t(g.entries_for(s->model.tokens)));
  }

  void append_index_keys() {
    live* const s = any();
    const auto& g = host_.geometry();
    if (!s || g.index_keys.lanes == 0) return;
    const auto k = std::int32_t(below(g.index_keys.lanes));
    fm::index_key_pages there;
    REQUIRE(host_.index_keys(s->host, k, &there) == status::ok);
    const std::int64_t count = below(20);
    const auto keys = make_keys(g, count, std::uint64_t(random_()));
    const auto expected =
        host_.append_index_keys(s->host, k, there.keys, key_view(g, keys, count), store_testing::host);
    fm::view<const std::byte, 2> moved = key_view(g, keys, count);
    if (count > 0) moved.data = ring_.put(keys.data(), std::size_t(count * g.index_keys.bytes()));
    REQUIRE(device_->append_index_keys(s->device, k, there.keys, moved, stream()) == expected);
  }

  ids wanted(const live& s) {
    fm::sequence_info i;
    REQUIRE(host_.info(s.host, &i) == status::ok);
    ids list;
    for (fm::chunk_id c = 0; c < i.complete_chunks; ++c)
      if (below(3) == 0) list.push_back(c);
    if (below(2) == 0) std::shuffle(list.begin(), list.end(), random_);
    return list;
  }
  static void equal(const fm::recall_report& a, const fm::recall_report& b) {
    REQUIRE(a.selected == b.selected);
    REQUIRE(a.hits == b.hits);
    REQUIRE(a.recalled == b.recalled);
    REQUIRE(a.refused == b.refused);
    REQUIRE(a.evicted == b.evicted);
    REQUIRE(a.bytes == b.bytes);
  }

  void recall() {
    live* const s = any();
    if (!s) return;
    const ids list = wanted(*s);
    const fm::view<const fm::chunk_id, 1> view(list.data(), list.size());
    fm::recall_report a, b;
    REQUIRE(host_.recall(s->host, view, &a, store_testing::host) == status::ok);
    REQUIRE(device_->recall(s->device, view, &b, stream()) == status::ok);
    equal(a, b);
  }

  void start() {
    live* const s = any();
    if (!s) return;
    const ids list = wanted(*s);
    const fm::view<const fm::chunk_id, 1> view(list.data(), list.size());
    fm::recall_report a, b;
    const auto expected = host_.start_recall(s->host, view, &a, store_testing::host);
    REQUIRE(device_->start_recall(s->device, view, &b, stream()) == expected);
    if (expected == status::ok) equal(a, b);
  }

  void finish() {
    live* const s = any();
    if (!s) return;
    if (below(4) == 0) {
      REQUIRE(host_.cancel_recall(s->host) == status::ok);
      REQUIRE(device_->cancel_recall(s->device) == status::ok);
      return;
    }
    fm::recall_report a, b;
    const auto expected = host_.finish_recall(s->host, fm::late_policy::wait, &a, store_testing::host);
    REQUIRE(device_->finish_recall(s->device, fm::late_policy::wait, &b, stream()) == expected);
    if (expected == status::ok) equal(a, b);
  }

  fm::tiered_chunk_store host_;
  std::unique_ptr<fm::tiered_chunk_store> device_;
  device_stream stream_[2];
  scratch_ring ring_;
  std::mt19937 random_;
  std::size_t most_;
  std::vector<live> all_;
};

fm::kv_geometry random_geometry(std::mt19937& random) {
  const auto pick = [&](std::int32_t from, std::int32_t to) {
    return std::uniform_int_distribution<std::int32_t>(from, to)(random);
  };
  fm::kv_geometry g;
  g.layers = pick(1, 3);
  g.kv_heads = pick(1, 3);
  g.key_dim = pick(0, 1) ? 8 * pick(1, 4) : pick(1, 19);
  g.value_dim = pick(0, 1) ? 8 * pick(1, 4) : pick(1, 19);
  g.type = std::vector<fm::dtype>{fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16}[std::size_t(pick(0, 2))];
  g.entries_per_chunk = pick(1, 9);
  g.tokens_per_entry = pick(0, 2) == 0 ? pick(2, 4) : 1;
  g.index_keys.lanes = pick(0, 2);
  g.index_keys.tokens_per_key = g.entries_per_chunk;
  g.index_keys.dim = pick(1, 16);
  g.index_keys.layout = pick(0, 1) ? fm::index_key_layout::planar : fm::index_key_layout::interleaved;
  return g;
}

}  // namespace

TEST_CASE("after any calls a store on the device holds byte for byte what one in host memory does", "[gpu]") {
  REQUIRE_GPU();
  const auto seed = flashmemory_test::fresh_seed();
  std::mt19937 random(seed);
  const int medium = GENERATE(0, 1, 2);  // pinned memory, checked host memory, a file
  CAPTURE(seed, medium);
  for (int round = 0; round < repeats(12, 3); ++round) {
    fm::store_options o = small_options(random_geometry(random));
    o.fast_bytes = o.backing_bytes = std::size_t{64} << 20;
    o.max_sequences = 12;
    fm::store_options there = o;
    there.verify_ram = medium == 1;
    temporary_path path;
    if (medium == 2) there.backing_path = path.string();
    fm::cuda::device_store_options device;
    device.recall_sms = 1 + round % 5;
    device.on_demand = fm::cuda::recall_method(round % 3);
    device.pinned_slab_bytes = std::size_t{1} << (10 + round);
    device.initial_slots = round % 3 == 0 ? 40 : 0;
    CAPTURE(round, o.geometry.layers, o.geometry.kv_heads, o.geometry.key_dim, o.geometry.value_dim,
            o.geometry.entries_per_chunk, o.geometry.tokens_per_entry, int(o.geometry.type));
    twins pair(o, there, device, std::uint32_t(random()), 10);
    for (int step = 0; step < repeats(150, 60); ++step) {
      CAPTURE(step);
      pair.step();
      if (step % 10 == 9) {
        pair.settle();
        pair.compare();
      }
    }
  }
}

TEST_CASE("sixty-four sequences come, fork, roll back, recall and go on the device as they do on the host",
          "[gpu]") {
  REQUIRE_GPU();
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  fm::kv_geometry g = small_geometry();
  g.kv_heads = 4;
  g.key_dim = g.value_dim = 64;
  g.entries_per_chunk = 16;
  fm::store_options o = small_options(g);
  o.fast_bytes = o.backing_bytes = std::size_t{512} << 20;
  o.max_sequences = 64;
  twins pair(o, o, {}, seed, 64);
  for (int step = 0; step < 1500; ++step) {
    CAPTURE(step);
    pair.step();
    if (step % 250 == 249) {
      pair.settle();
      pair.compare();
    }
  }
}
