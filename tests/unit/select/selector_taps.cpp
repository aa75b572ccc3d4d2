// SPDX-License-Identifier: MIT
// What a selector shows an indexer besides the newest hidden state: a layer's keys, and several tokens at a time.
#include <random>

#include "src/core/convert.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

constexpr std::int32_t heads = 2, dim = 16;

fm::kv_geometry geometry_of(std::int32_t lanes) {
  fm::kv_geometry g = toy::geometry(lanes);
  g.kv_heads = heads;
  return g;
}

/// Lanes from both layers' keys, one of them twice, and one from hidden states of the same layer.
struct bench {
  struct key_indexer final : toy::scripted_indexer {
    key_indexer() {
      const auto k = fm::tap_kind::keys;
      keys = {{0, heads * dim, 4, 4, k},
              {1, heads * dim, 4, 4, k},
              {0, heads * dim, 4, 9, k},
              {0, toy::width, 4, 4, fm::tap_kind::hidden}};
    }
  };
  key_indexer index;
  fm::kv_geometry geometry = geometry_of(4);
  fm::tiered_chunk_store store{toy::store_options(geometry)};
  toy::failing_store front{store};
  fm::selection_policy policy;
  fm::selector_options options;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  explicit bench(std::int32_t rollback = 64) {
    policy.interval = 8;
    options.max_rollback_tokens = rollback;
    options.stagger = false;
    select = std::make_unique<fm::selector>(front, index, policy, options);
    engine = std::make_unique<toy::engine>(front, *select);
  }
  toy::sequence open(std::uint64_t tag) {
    return engine->open(fm::sequence_options_for(policy, geometry, 1200), tag);
  }
  std::vector<std::byte> expected(const toy::sequence& s, std::int32_t lane) const {
    const fm::index_key_tap& tap = index.keys[std::size_t(lane)];
    const std::int64_t count = s.tokens / 4, rows = (count - 1) * 4 + tap.window;
    if (count == 0) return {};
    std::vector<float> values(std::size_t(rows * tap.width), 0.0f);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = 0; i < tap.width; ++i)
        if (const std::int64_t token = r + 4 - tap.window; token >= 0)
          values[std::size_t(r * tap.width + i)] = tap.kind == fm::tap_kind::keys
                                                       ? toy::key_value(s, tap.layer, token, i)
                                                       : toy::hidden_value(s, tap.layer, token, i);
    std::vector<std::byte> out(std::size_t(count * geometry.index_keys.bytes()));
    REQUIRE(index.encode_index_keys(lane, fm::view<const float, 2>(values.data(), rows, tap.width),
                                    fm::view<std::byte, 2>(out.data(), count, geometry.index_keys.bytes()),
                                    {}, {}) == status::ok);
    return out;
  }
  void check_keys(const toy::sequence& s) const {
    for (std::int32_t lane = 0; lane < 4; ++lane) {
      CAPTURE(lane, s.tokens);
      REQUIRE(toy::key_bytes(store, s.handle, lane) == expected(s, lane));
    }
  }
};

}  // namespace

TEST_CASE("index keys made from a layer's keys do not depend on pieces, rollbacks, forks or saved states",
          "[selector][keys]") {
  const std::int32_t rollback = GENERATE(0, 7, 64);
  bench b(rollback);
  b.engine->observe_first = GENERATE(true, false);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed, rollback);
  std::mt19937 random(seed);
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  auto s = b.open(21);
  std::int64_t longest = 0;
  for (int round = 0; s.tokens < 400 && round < 1000; ++round) {
    REQUIRE(b.engine->step(s, draw(1, round % 5 == 0 ? 150 : 9)) == status::ok);
    longest = std::max(longest, s.tokens);
    if (draw(0, 1) == 0) continue;
    const std::int64_t back = draw(std::max<std::int64_t>(0, longest - rollback), s.tokens);
    REQUIRE(b.store.truncate(s.handle, back) == status::ok);
    if (back < s.tokens) s.branches.push_back({back, 1000 + std::uint64_t(round)});
    s.tokens = back;
  }
  REQUIRE(b.engine->step(s, 5) == status::ok);
  b.check_keys(s);
  toy::sequence child = s;
  child.handle = b.store.fork(s.handle, fm::sequence_options_for(b.policy, b.geometry, 1200));
  b.select->attach_fork(s.handle, child.handle);
  child.branches.push_back({child.tokens, 5});
  const auto state = b.select->save_state(s.handle);
  b.select->detach(s.handle);
  b.select->load_state(s.handle, state.data(), state.size());
  for (int i = 0; i < 9; ++i) REQUIRE(b.engine->step({&s, &child}, {1, 3}) == status::ok);
  b.check_keys(s);
  b.check_keys(child);
}

TEST_CASE("keys that K with NaN or Inf went into are stored as zero and counted", "[selector][keys]") {
  bench b;
  auto s = b.open(5);
  std::vector<float> k(8 * heads * dim, 0.5f), hidden(8 * toy::width, 0.5f);
  k[5 * heads * dim + 20] =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  const fm::batch_item item{s.handle, 0, 8};
  REQUIRE(b.select->observe_keys(fm::batch(&item, 1), 0, fm::view<const float, 3>(k.data(), 8, heads, dim),
                                 toy::host) == status::ok);
  CHECK(b.select->counters().nan_keys == 2);  // the second key of each of the layer's two lanes
  const auto keys = toy::key_bytes(b.store, s.handle, 0);
  CHECK(std::any_of(keys.begin(), keys.begin() + 132, [](std::byte x) { return x != std::byte{0}; }));
  CHECK(std::all_of(keys.begin() + 132, keys.end(), [](std::byte x) { return x == std::byte{0}; }));
}

TEST_CASE("K of any dtype and strides makes the same keys as its floats", "[selector][keys]") {
  bench b;
  const auto type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  const bool heads_first = GENERATE(false, true);
  CAPTURE(int(type), heads_first);
  auto s = b.open(5), t = b.open(6);
  constexpr std::int64_t tokens = 45, gap = 3;
  fm::const_tensor<3> strided;
  strided.type = type;
  strided.shape[0] = tokens;
  strided.shape[1] = heads;
  strided.shape[2] = dim;
  strided.stride[0] = heads_first ? dim : heads * (dim + gap);
  strided.stride[1] = heads_first ? tokens * dim : dim + gap;
  strided.stride[2] = 1;
  std::vector<std::byte> raw(std::size_t(tokens * heads * (dim + gap)) * size_of(type));
  strided.data = raw.data();
  std::vector<float> floats;
  for (std::int64_t r = 0; r < tokens; ++r)
    for (std::int64_t i = 0; i < heads * dim; ++i) {
      const std::int64_t at = r * strided.stride[0] + i / dim * strided.stride[1] + i % dim;
      fm::detail::store_float(raw.data(), type, at, toy::key_value(s, 0, r, i));
      floats.push_back(fm::detail::load_float(raw.data(), type, at));
    }
  const fm::batch_item one{s.handle, 0, std::int32_t(tokens)}, two{t.handle, 0, std::int32_t(tokens)};
  REQUIRE(b.select->observe_keys(fm::batch(&one, 1), 0, strided, toy::host) == status::ok);
  REQUIRE(b.select->observe_keys(fm::batch(&two, 1), 0,
                                 fm::view<const float, 3>(floats.data(), tokens, heads, dim),
                                 toy::host) == status::ok);
  for (const std::int32_t lane : {0, 2}) {
    CHECK(toy::key_bytes(b.store, s.handle, lane).size() == std::size_t(11 * 132));
    CHECK(toy::key_bytes(b.store, s.handle, lane) == toy::key_bytes(b.store, t.handle, lane));
  }
}

TEST_CASE("an append that fails between the lanes of one layer can be repeated", "[selector][keys]") {
  bench b;
  const int succeed = GENERATE(0, 1, 2, 3);
  auto s = b.open(5);
  REQUIRE(b.engine->step(s, 10) == status::ok);
  b.front.fail_append_keys_after = succeed;
  std::vector<float> k, hidden;
  const std::int64_t n = 400;
  for (std::int64_t t = 10; t < 10 + n; ++t)
    for (std::int64_t i = 0; i < heads * dim; ++i) k.push_back(toy::key_value(s, 0, t, i));
  const fm::batch_item item{s.handle, 10, std::int32_t(n)};
  const auto observe = [&] {
    return b.select->observe_keys(fm::batch(&item, 1), 0, fm::view<const float, 3>(k.data(), n, heads, dim),
                                  toy::host);
  };
  CHECK(observe() == status::io_error);
  b.front.fail_append_keys_after = -1;
  CHECK(observe() == status::ok);
  s.tokens += n;
  for (const std::int32_t lane : {0, 2})
    REQUIRE(toy::key_bytes(b.store, s.handle, lane) == b.expected(s, lane));
}

TEST_CASE("what a selector reads is told by layer and kind, and K of another shape is refused",
          "[selector]") {
  bench b;
  CHECK(b.select->reads(0, fm::tap_kind::keys));
  CHECK(b.select->reads(1, fm::tap_kind::keys));
  CHECK(b.select->reads(0));
  CHECK(b.select->reads(1));
  CHECK_FALSE(b.select->reads(0, fm::tap_kind::queries));
  auto s = b.open(5);
  const std::vector<float> k(4 * heads * dim, 0.5f);
  const fm::batch_item item{s.handle, 0, 4};
  const fm::batch items(&item, 1);
  using rows = fm::view<const float, 3>;
  CHECK(b.select->observe_keys(items, 0, rows(k.data(), 4, 1, heads * dim), toy::host) == status::bad_shape);
  CHECK(b.select->observe_keys(items, 0, rows(k.data(), 4, dim, heads), toy::host) == status::bad_shape);
  CHECK(b.select->observe_keys(items, 0, rows(k.data(), 3, heads, dim), toy::host) == status::bad_shape);
  CHECK(b.select->last_fault().what == std::string("keys"));
  CHECK(b.select->observe_keys(items, 0, rows(nullptr, 4, heads, dim), toy::host) == status::null_data);
  CHECK(b.select->observe_keys(items, 1, rows(k.data(), 4, heads, dim), toy::host) == status::ok);
  CHECK(toy::key_bytes(b.store, s.handle, 1).size() == 132);
  CHECK(toy::key_bytes(b.store, s.handle, 0).empty());

  b.index.keys[0].width = heads * dim + 1;
  CHECK_THROWS_WITH(fm::selector(b.store, b.index, b.policy), Catch::Contains("values a token"));
  b.index.keys[0] = {0, heads * dim, 4, 4, fm::tap_kind::keys};
  fm::store_options compressed = toy::store_options(b.geometry);
  compressed.geometry.tokens_per_entry = 4;
  fm::tiered_chunk_store other(compressed);
  CHECK_THROWS_AS(fm::selector(other, b.index, b.policy), fm::argument_error);
}

TEST_CASE("an indexer sees as many of the newest tokens as its taps ask for, after rejected ones too",
          "[selector]") {
  struct seeing final : toy::scripted_indexer {
    std::vector<std::vector<float>> seen;
    seeing() {
      queries = {{1, fm::tap_kind::queries, 8, 5},
                 {1, fm::tap_kind::queries, 8, 1},
                 {0, fm::tap_kind::hidden, toy::width, 3},
                 {1, fm::tap_kind::keys, heads * dim, 2}};
      keys.clear();
    }
    fm::status score(const fm::score_request& r, fm::view<float, 1> s) noexcept override {
      seen.clear();
      for (std::size_t t = 0; t < queries.size(); ++t)
        seen.emplace_back(r.queries[t], r.queries[t] + queries[t].width * queries[t].tokens);
      return toy::scripted_indexer::score(r, s);
    }
  } index;
  const fm::kv_geometry g = geometry_of(0);
  fm::tiered_chunk_store store(toy::store_options(g));
  fm::selection_policy policy;
  fm::selector select(store, index, policy);
  toy::engine engine(store, select);
  engine.queries = true;
  engine.query_width = 8;
  auto s = engine.open(fm::sequence_options_for(policy, g, 800), 2);
  const std::int64_t prompt = GENERATE(8, 40);
  const std::int64_t kept = GENERATE(0, 1, 7, 8);
  CAPTURE(prompt, kept);
  REQUIRE(engine.step(s, prompt) == status::ok);
  REQUIRE(engine.pass({&s}, {8}) == status::ok);
  const std::int64_t length = prompt + std::max<std::int64_t>(kept, 1);
  REQUIRE(store.truncate(s.handle, length) == status::ok);
  REQUIRE(select.request_refresh(s.handle) == status::ok);
  const fm::batch_item item{s.handle, prompt, std::int32_t(length - prompt)};
  REQUIRE(fm::select_chunks(select, fm::batch(&item, 1), toy::host) == status::ok);
  for (std::size_t tap = 0; tap < index.queries.size(); ++tap) {
    const fm::query_tap& t = index.queries[tap];
    for (std::int64_t row = 0; row < t.tokens; ++row)
      for (std::int64_t i = 0; i < t.width; ++i) {
        const std::int64_t token = length - t.tokens + row;
        const float want = t.kind == fm::tap_kind::hidden    ? toy::hidden_value(s, t.layer, token, i)
                           : t.kind == fm::tap_kind::queries ? toy::query_value(s, t.layer, token, i)
                                                             : toy::key_value(s, t.layer, token, i);
        CAPTURE(tap, row, i);
        REQUIRE(index.seen[tap][std::size_t(row * t.width + i)] == want);
      }
  }
}

TEST_CASE("for tokens from before a sequence's start stands its first one", "[selector]") {
  struct seeing final : toy::scripted_indexer {
    std::vector<float> seen;
    seeing() {
      queries = {{1, fm::tap_kind::hidden, toy::width, 12}};
      keys.clear();
    }
    fm::status score(const fm::score_request& r, fm::view<float, 1> s) noexcept override {
      seen.assign(r.queries[0], r.queries[0] + 12 * toy::width);
      return toy::scripted_indexer::score(r, s);
    }
  } index;
  const fm::kv_geometry g = geometry_of(0);
  fm::tiered_chunk_store store(toy::store_options(g));
  fm::selection_policy policy;
  fm::selector select(store, index, policy);
  toy::engine engine(store, select);
  auto s = engine.open(fm::sequence_options_for(policy, g, 800), 2);
  REQUIRE(engine.step(s, 9) == status::ok);
  REQUIRE(index.seen.size() == 12 * toy::width);
  for (std::int64_t row = 0; row < 12; ++row)
    for (std::int64_t i = 0; i < toy::width; ++i)
      REQUIRE(index.seen[std::size_t(row * toy::width + i)] ==
              toy::hidden_value(s, 1, std::max<std::int64_t>(0, row - 3), i));

  index.queries[0].tokens = fm::max_query_tap_tokens + 1;
  CHECK_THROWS_AS(fm::selector(store, index, policy), fm::argument_error);
  index.queries[0].tokens = 0;
  CHECK_THROWS_AS(fm::selector(store, index, policy), fm::argument_error);
}
