// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include <cstring>
#include <flashmemory/cuda/prompt_attention.hpp>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/error.hpp>
#include <random>

#include "tests/cuda/gpu.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/store_testing.hpp"

namespace fm = flashmemory;
using flashmemory_test::device_array;
using flashmemory_test::device_stream;
using flashmemory_test::fresh_seed;
using flashmemory_test::must;
using fm::status;

namespace {

constexpr std::int32_t query_heads = 4;

fm::kv_geometry geometry_of(std::int32_t dim, std::int32_t per_chunk) {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = 2;
  g.key_dim = g.value_dim = dim;
  g.entries_per_chunk = per_chunk;
  return g;
}

/// Random bf16 of ordinary size, the same for every store that is given the same seed.
std::vector<std::uint16_t> elements(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::uint16_t> out(static_cast<std::size_t>(count));
  for (auto& x : out) {
    const std::uint64_t r = random();
    x = static_cast<std::uint16_t>((r >> 60 & 1u) << 15 | (124 + (r >> 40 & 3u)) << 7 | (r & 127u));
  }
  return out;
}

/// A store on the device with some sequences, a part of each resident.
struct world {
  device_stream stream;
  std::unique_ptr<fm::tiered_chunk_store> store;
  std::vector<fm::batch_item> sequences;

  world(const fm::kv_geometry& g, std::int64_t quota, std::uint64_t seed,
        const std::vector<std::int64_t>& lengths, const std::string& file = {}) {
    fm::store_options o;
    o.geometry = g;
    o.backing_path = file;
    o.fast_bytes = o.backing_bytes = std::size_t{96} << 20;
    store = fm::cuda::make_store(o);
    for (const std::int64_t length : lengths) {
      fm::sequence_options s;
      s.max_tokens = 4096;
      s.max_resident_chunks = quota;
      sequences.push_back({store->open(s), 0, 0});
      grow(sequences.size() - 1, length, seed + sequences.size(), g.layers);
    }
  }
  /// Appends to the first `layers` layers.
  void grow(std::size_t which, std::int64_t tokens, std::uint64_t seed, std::int32_t layers) {
    const fm::kv_geometry& g = store->geometry();
    fm::batch_item& item = sequences[which];
    item.position += item.num_tokens;
    item.num_tokens = std::int32_t(tokens);
    for (std::int32_t layer = 0; layer < layers; ++layer) {
      const std::int64_t row = std::int64_t{g.kv_heads} * g.key_dim;
      const device_array<std::uint16_t> k(elements(tokens * row, seed * 100 + std::uint64_t(layer)));
      const device_array<std::uint16_t> v(elements(tokens * row, seed * 100 + 50 + std::uint64_t(layer)));
      REQUIRE(store->append(fm::batch(&item, 1), layer,
                            fm::const_tensor<3>(k.data(), g.type, tokens, g.kv_heads, g.key_dim),
                            fm::const_tensor<3>(v.data(), g.type, tokens, g.kv_heads, g.value_dim),
                            stream.ref()) == status::ok);
      stream.wait();
    }
  }
  void recall(std::size_t which, const std::vector<fm::chunk_id>& chunks) {
    REQUIRE(store->recall(sequences[which].sequence,
                          fm::view<const fm::chunk_id, 1>(chunks.data(), chunks.size()), nullptr,
                          stream.ref()) == status::ok);
  }
};

struct answer {
  status code = status::ok;
  fm::fault why;
  std::vector<float> out, lse;
  bool operator==(const answer& other) const {
    return code == other.code && std::memcmp(out.data(), other.out.data(), out.size() * 4) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * 4) == 0;
  }
};

fm::cuda::prompt_attention_options options_of(const fm::kv_geometry& g, std::int64_t wave_chunks,
                                              bool staged) {
  fm::cuda::prompt_attention_options o;
  o.geometry = g;
  o.query_heads = query_heads;
  o.max_tokens = 2048;
  o.max_items = 8;
  o.max_chunks = 4096 / g.entries_per_chunk + 1;
  o.wave_bytes = std::size_t(wave_chunks) * fm::chunk_layout(g).layer_bytes();
  o.staged = staged;
  return o;
}

answer attend(world& w, fm::cuda::prompt_attention& attention, std::vector<fm::batch_item> items,
              fm::attend_reach reach, std::int32_t layer = 1, const fm::attend_options& more = {}) {
  const fm::kv_geometry& g = w.store->geometry();
  std::int64_t rows = 0;
  for (const auto& item : items) rows += item.num_tokens;
  const device_array<std::uint16_t> q(elements(rows * query_heads * g.key_dim, 77));
  const device_array<float> out(std::size_t(rows * query_heads * g.value_dim)),
      lse(std::size_t(rows * query_heads));
  answer a;
  fm::attend_options o = more;
  o.reach = reach;
  o.lse = fm::view<float, 2>(lse.data(), rows, query_heads);
  o.error = &a.why;
  a.code = attention.attend(*w.store, fm::batch(items.data(), items.size()), layer,
                            fm::const_tensor<3>(q.data(), g.type, rows, query_heads, g.key_dim),
                            fm::tensor<3>(out.data(), fm::dtype::f32, rows, query_heads, g.value_dim), o,
                            w.stream.ref());
  w.stream.wait();
  a.out = out.get();
  a.lse = lse.get();
  return a;
}

}  // namespace

TEST_CASE(
    "attention over everything on the device gives equal bits whatever is resident and however waves are cut",
    "[prompt]") {
  REQUIRE_GPU();
  const auto dim = GENERATE(64, 128, 48);
  const auto per_chunk = GENERATE(64, 16);
  const auto seed = fresh_seed();
  CAPTURE(dim, per_chunk, seed);
  const fm::kv_geometry g = geometry_of(dim, per_chunk);
  const std::vector<std::int64_t> lengths = {1500, 700, 65, 900};
  world dense(g, 0, seed, lengths), sparse(g, 12, seed, lengths);
  sparse.recall(0, {3, 5, 9});
  sparse.recall(1, {2});
  const auto items = [](const world& w) {
    return std::vector<fm::batch_item>{{w.sequences[0].sequence, 1300, 200},
                                       {w.sequences[1].sequence, 699, 1},
                                       {},
                                       {w.sequences[2].sequence, 0, 65},
                                       {w.sequences[3].sequence, 860, 40}};
  };
  fm::cuda::prompt_attention whole({}, options_of(g, 64, false));
  const answer expected = attend(dense, whole, items(dense), fm::attend_reach::everything);
  REQUIRE(expected.code == status::ok);
  for (const std::int64_t wave : {1, 3, 40}) {
    CAPTURE(wave);
    fm::cuda::prompt_attention waves({}, options_of(g, wave, false));
    for (int again = 0; again < 6; ++again)  // more calls than parts of the tables
      CHECK(attend(sparse, waves, items(sparse), fm::attend_reach::everything) == expected);
  }
}

TEST_CASE("chunks on a file are staged, and without staging refused by name", "[prompt]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  const fm::kv_geometry g = geometry_of(64, 16);
  const store_testing::temporary_path path;
  world dense(g, 0, seed, {1000}), file(g, 10, seed, {1000}, path.string());
  fm::cuda::prompt_attention whole({}, options_of(g, 64, false)), staged({}, options_of(g, 4, true));
  const auto item = [](const world& w) {
    return std::vector<fm::batch_item>{{w.sequences[0].sequence, 950, 50}};
  };
  const answer expected = attend(dense, whole, item(dense), fm::attend_reach::everything);
  CHECK(attend(file, staged, item(file), fm::attend_reach::everything) == expected);
  const answer refused = attend(file, whole, item(file), fm::attend_reach::everything);
  CHECK(refused.code == status::unsupported);
  CHECK(refused.why.chunk >= 0);
  for (const float x : refused.out) CHECK(std::isnan(x));
}

TEST_CASE("a piece attends to its own chunks in the middle of its pass, wherever they are", "[prompt]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  const fm::kv_geometry g = geometry_of(128, 64);
  world dense(g, 0, seed, {200}), sparse(g, 9, seed, {200});
  fm::cuda::prompt_attention attention({}, options_of(g, 3, false));
  for (std::int32_t layers = 1; layers <= 2; ++layers) {
    // The second time over the same tokens, with both layers, after giving the pass up.
    for (world* w : {&dense, &sparse}) {
      if (layers == 2) REQUIRE(w->store->truncate(w->sequences[0].sequence, 200) == status::ok);
      w->sequences[0].position = 0;
      w->sequences[0].num_tokens = 200;
      w->grow(0, 1000, 9, layers);
    }
    const std::int32_t layer = layers - 1;
    const answer expected =
        attend(dense, attention, {dense.sequences[0]}, fm::attend_reach::everything, layer);
    REQUIRE(expected.code == status::ok);
    CHECK(attend(sparse, attention, {sparse.sequences[0]}, fm::attend_reach::everything, layer) == expected);
    CHECK(attend(sparse, attention, {sparse.sequences[0]}, fm::attend_reach::resident, layer).code ==
          status::ok);
  }
}

TEST_CASE("a chunk that is corrupt refuses the call by its name, or is left out", "[prompt]") {
  REQUIRE_GPU();
  const fm::kv_geometry g = geometry_of(64, 16);
  store_testing::failing_backing::switches control;
  fm::store_options o;
  o.geometry = g;
  o.fast_bytes = o.backing_bytes = std::size_t{32} << 20;
  control.verify = true;
  world w(g, 10, 5, {});
  w.store = fm::cuda::make_store(o, {}, {}, store_testing::failing_ram(o, &control));
  fm::sequence_options s;
  s.max_tokens = 4096;
  s.max_resident_chunks = 10;
  w.sequences.push_back({w.store->open(s), 0, 0});
  w.grow(0, 800, 3, g.layers);
  fm::cuda::prompt_attention staged({}, options_of(g, 4, true));
  const std::vector<fm::batch_item> item{{w.sequences[0].sequence, 780, 20}};
  const answer good = attend(w, staged, item, fm::attend_reach::everything);
  REQUIRE(good.code == status::ok);
  control.flip_read = control.reads + 7;
  control.failing_reads = 2;  // the read and its repetition
  const answer bad = attend(w, staged, item, fm::attend_reach::everything);
  CHECK(bad.code == status::corrupt_chunk);
  CHECK(bad.why.sequence == w.sequences[0].sequence.index);
  CHECK(bad.why.chunk >= 0);
  for (const float x : bad.out) REQUIRE(std::isnan(x));
  CHECK(attend(w, staged, item, fm::attend_reach::everything) == good);
  control.flip_read = control.reads + 7;
  std::int64_t left_out = -1;
  fm::attend_options more;
  more.leave_out_unreadable = true;
  more.left_out = &left_out;
  const answer rest = attend(w, staged, item, fm::attend_reach::everything, 1, more);
  CHECK(rest.code == status::ok);
  CHECK(left_out == 1);
  CHECK(w.store->last_fault().code == status::corrupt_chunk);
  CHECK_FALSE(rest == good);
}

TEST_CASE("what a prompt_attention has no room for is refused by the option's name", "[prompt]") {
  REQUIRE_GPU();
  const fm::kv_geometry g = geometry_of(64, 16);
  world w(g, 0, 5, {600});
  auto o = options_of(g, 4, false);
  o.max_chunks = 20;
  o.max_tokens = 64;
  o.max_items = 1;
  fm::cuda::prompt_attention small({}, o);
  const auto sequence = w.sequences[0].sequence;
  const auto refused = [&](std::vector<fm::batch_item> items, status code, const char* what) {
    const answer a = attend(w, small, items, fm::attend_reach::everything);
    CHECK(a.code == code);
    CHECK(std::string(a.why.what) == what);
    for (const float x : a.out) REQUIRE(std::isnan(x));
  };
  refused({{sequence, 500, 20}}, status::budget_exceeded, "max_chunks");
  refused({{sequence, 0, 65}}, status::budget_exceeded, "max_chunks");  // all of its chunks are resident
  refused({{sequence, 0, 1}, {}}, status::budget_exceeded, "max_items");
  refused({{sequence, 590, 20}}, status::out_of_order, "K and V up to the last query");
  refused({{sequence, -1, 20}}, status::bad_argument, "position");
  o.query_heads = 3;
  CHECK_THROWS_AS(fm::cuda::prompt_attention({}, o), fm::argument_error);
  o = options_of(g, 4, false);
  o.max_tokens = 0;
  CHECK_THROWS_AS(fm::cuda::prompt_attention({}, o), fm::argument_error);
}
