// SPDX-License-Identifier: MIT
#include <random>

#include "src/core/convert.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

struct bench {
  toy::scripted_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store store{toy::store_options(geometry)};
  fm::selection_policy policy;
  fm::selector_options options;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  explicit bench(std::int32_t rollback = 64) {
    policy.interval = 8;
    options.max_rollback_tokens = rollback;
    options.stagger = false;
    select = std::make_unique<fm::selector>(store, index, policy, options);
    engine = std::make_unique<toy::engine>(store, *select);
  }
  toy::sequence open(std::uint64_t tag) {
    return engine->open(fm::sequence_options_for(policy, geometry, 1200), tag);
  }

  /// The keys of these hidden states, encoded in one call per stream.
  std::vector<std::byte> expected(const toy::sequence& s, std::int32_t stream) const {
    const fm::index_key_tap& tap = index.keys[std::size_t(stream)];
    const std::int64_t keys = s.tokens / tap.tokens_per_key;
    if (keys == 0) return {};
    const std::int64_t rows = (keys - 1) * tap.tokens_per_key + tap.window;
    std::vector<float> hidden(std::size_t(rows * tap.width), 0.0f);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = 0; i < tap.width; ++i)
        if (const std::int64_t token = r + tap.tokens_per_key - tap.window; token >= 0)
          hidden[std::size_t(r * tap.width + i)] = toy::hidden_value(s, tap.layer, token, i);
    std::vector<std::byte> out(std::size_t(keys * geometry.index_keys.bytes()));
    REQUIRE(index.encode_index_keys(stream, fm::view<const float, 2>(hidden.data(), rows, tap.width),
                                    fm::view<std::byte, 2>(out.data(), keys, geometry.index_keys.bytes()), {},
                                    {}) == status::ok);
    return out;
  }
  void check_keys(const toy::sequence& s) const {
    for (std::int32_t stream = 0; stream < geometry.index_keys.lanes; ++stream) {
      CAPTURE(stream, s.tokens);
      REQUIRE(toy::key_bytes(store, s.handle, stream) == expected(s, stream));
    }
  }
};

}  // namespace

TEST_CASE("index keys of a whole prompt are those of one call over all tokens, in bounded blocks",
          "[selector][keys]") {
  bench b;
  b.engine->observe_first = GENERATE(true, false);
  const std::int64_t prompt = GENERATE(1, 3, 4, 5, 63, 64, 65, 259, 1031);
  CAPTURE(prompt);
  auto s = b.open(7);
  REQUIRE(b.engine->step(s, prompt) == status::ok);
  CHECK(b.index.largest_block <= 64);
  b.check_keys(s);
}

TEST_CASE("index keys do not depend on the pieces in which tokens come", "[selector][keys]") {
  bench b;
  b.engine->observe_first = GENERATE(true, false);
  const int most = GENERATE(1, 2, 5, 30, 120);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed, most);
  std::mt19937 random(seed);
  auto s = b.open(11), t = b.open(12);
  while (s.tokens < 500) {
    const auto n = std::uniform_int_distribution<std::int64_t>(1, most)(random);
    const auto m = std::uniform_int_distribution<std::int64_t>(1, most)(random);
    if (t.tokens + m <= 1200)
      REQUIRE(b.engine->step({&s, &t}, {n, m}) == status::ok);
    else
      REQUIRE(b.engine->step(s, n) == status::ok);
  }
  b.check_keys(s);
  b.check_keys(t);
}

TEST_CASE("index keys after rollbacks are those of the tokens that stayed", "[selector][keys]") {
  const std::int32_t rollback = GENERATE(0, 1, 7, 64);
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
  for (int round = 0; s.tokens < 600 && round < 1000; ++round) {
    REQUIRE(b.engine->step(s, draw(1, 20)) == status::ok);
    longest = std::max(longest, s.tokens);
    if (draw(0, 1) == 0) continue;
    const std::int64_t back = draw(std::max<std::int64_t>(0, longest - rollback), s.tokens);
    REQUIRE(b.store.truncate(s.handle, back) == status::ok);
    if (back < s.tokens) s.branches.push_back({back, 1000 + std::uint64_t(round)});
    s.tokens = back;
  }
  REQUIRE(b.engine->step(s, 5) == status::ok);
  b.check_keys(s);
}

TEST_CASE("a rollback beyond max_rollback_tokens is refused at once and by name, one to the start is not",
          "[selector][keys]") {
  bench b(6);
  auto s = b.open(5);
  REQUIRE(b.engine->step(s, 100) == status::ok);
  const std::int64_t back = GENERATE(94, 93, 50, 0);
  CAPTURE(back);
  if (back == 94 || back == 0) {
    REQUIRE(b.store.truncate(s.handle, back) == status::ok);
    s.tokens = back;
    CHECK(b.engine->step(s, 20) == status::ok);
    b.check_keys(s);
  } else {
    CHECK(b.store.truncate(s.handle, back) == status::out_of_range);
    CHECK(std::string(b.store.last_fault().what).find("max_rollback_tokens") != std::string::npos);
    CHECK(b.store.last_fault().expected == 94);
    CHECK(b.store.last_fault().actual == back);
    CHECK(toy::tokens(b.store, s.handle) == 100);
    b.check_keys(s);
    REQUIRE(b.engine->step(s, 1) == status::ok);
    // Who has nobody to follow may go anywhere; who was away finds that out.
    b.select->detach(s.handle);
    REQUIRE(b.store.truncate(s.handle, back) == status::ok);
    CHECK_THROWS_AS(b.select->attach(s.handle), fm::argument_error);
  }
}

TEST_CASE("an engine that goes back behind the selector's back is told when it goes on", "[selector][keys]") {
  bench b(6);
  auto s = b.open(5);
  REQUIRE(b.engine->step(s, 100) == status::ok);
  const std::int64_t back = GENERATE(93, 50);
  b.store.guard_rollback(s.handle, {});
  REQUIRE(b.store.truncate(s.handle, back) == status::ok);
  s.tokens = back;
  {
    CHECK(b.engine->step(s, 20) == status::out_of_order);
    const fm::fault f = b.select->last_fault();
    CHECK(f.sequence == s.handle.index);
    CHECK(f.layer == 0);
    CHECK(f.expected == 100);
    CHECK(f.actual == back);
    for (std::int32_t stream = 0; stream < 3; ++stream) {
      fm::index_key_pages pages;
      REQUIRE(b.store.index_keys(s.handle, stream, &pages) == status::ok);
      CHECK(pages.keys == back / 4);
    }
  }
}

TEST_CASE("observing a layer twice is out of order once a key was complete, and harmless before",
          "[selector][keys]") {
  bench b;
  auto s = b.open(5);
  REQUIRE(b.engine->step(s, 8) == status::ok);
  std::vector<float> hidden(std::size_t(3 * toy::width));
  for (std::int64_t t = 0; t < 3; ++t)
    for (std::int64_t i = 0; i < toy::width; ++i)
      hidden[std::size_t(t * toy::width + i)] = toy::hidden_value(s, 0, 8 + t, i);
  const fm::batch_item item{s.handle, 8, 3};
  const fm::view<const float, 2> rows(hidden.data(), 3, toy::width);
  CHECK(b.select->observe(fm::batch(&item, 1), 0, rows, toy::host) == status::ok);
  CHECK(b.select->observe(fm::batch(&item, 1), 0, rows, toy::host) == status::ok);
  REQUIRE(b.engine->step(s, 3) == status::ok);
  REQUIRE(b.engine->step(s, 1) == status::ok);
  b.check_keys(s);
  const fm::batch_item again{s.handle, 11, 1};
  CHECK(b.select->observe(fm::batch(&again, 1), 0, fm::view<const float, 2>(hidden.data(), 1, toy::width),
                          toy::host) == status::out_of_order);
  CHECK(b.select->last_fault().lane == 0);
  CHECK(b.select->last_fault().expected == 2);
  CHECK(b.select->last_fault().actual == 3);
  REQUIRE(b.engine->step(s, 9) == status::ok);
  b.check_keys(s);
}

TEST_CASE("hidden states of any dtype and strides make the same keys as their floats", "[selector][keys]") {
  bench b;
  const auto type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  const std::int64_t gap = GENERATE(0, 5);
  CAPTURE(int(type), gap);
  auto s = b.open(5), t = b.open(6);
  const std::int64_t tokens = 45, stride = 2 * toy::width + gap;
  std::vector<std::byte> raw(std::size_t(tokens * stride) * size_of(type));
  std::vector<float> floats;
  for (std::int64_t r = 0; r < tokens; ++r)
    for (std::int64_t i = 0; i < toy::width; ++i) {
      const std::int64_t at = r * stride + 2 * i;
      fm::detail::store_float(raw.data(), type, at, toy::hidden_value(s, 0, r, i));
      floats.push_back(fm::detail::load_float(raw.data(), type, at));
    }
  fm::const_tensor<2> strided(raw.data(), type, tokens, toy::width);
  strided.stride[0] = stride;
  strided.stride[1] = 2;
  const fm::batch_item one{s.handle, 0, std::int32_t(tokens)}, two{t.handle, 0, std::int32_t(tokens)};
  REQUIRE(b.select->observe(fm::batch(&one, 1), 0, strided, toy::host) == status::ok);
  REQUIRE(b.select->observe(fm::batch(&two, 1), 0,
                            fm::view<const float, 2>(floats.data(), tokens, toy::width),
                            toy::host) == status::ok);
  for (const std::int32_t stream : {0, 2}) {
    CHECK(toy::key_bytes(b.store, s.handle, stream).size() == std::size_t(11 * 132));
    CHECK(toy::key_bytes(b.store, s.handle, stream) == toy::key_bytes(b.store, t.handle, stream));
  }
}

TEST_CASE("keys that NaN or Inf went into are stored as zero and counted", "[selector][keys]") {
  bench b;
  b.engine->poison =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  auto s = b.open(5);
  REQUIRE(b.engine->pass({&s}, {6}) == status::ok);
  b.engine->poison = 0;
  REQUIRE(b.engine->step(s, 26) == status::ok);
  // Token 5 is seen by key 1 of every stream, by keys 1 and 2 with window 10, 1 to 4 with window 16.
  CHECK(b.select->counters().nan_keys == 2 + 1 + 4);
  const auto keys = toy::key_bytes(b.store, s.handle, 2);
  CHECK(
      std::all_of(keys.begin() + 132, keys.begin() + 5 * 132, [](std::byte x) { return x == std::byte{0}; }));
  CHECK(std::any_of(keys.begin() + 5 * 132, keys.end(), [](std::byte x) { return x != std::byte{0}; }));
}

TEST_CASE("a fork goes on with its parent's window and cadence", "[selector][keys]") {
  bench b;
  auto parent = b.open(31);
  REQUIRE(b.engine->step(parent, 101) == status::ok);
  for (int i = 0; i < 5; ++i) REQUIRE(b.engine->step(parent) == status::ok);
  toy::sequence child = parent;
  child.handle = b.store.fork(parent.handle, fm::sequence_options_for(b.policy, b.geometry, 1200));
  b.select->attach_fork(parent.handle, child.handle);
  child.branches.push_back({child.tokens, 99});
  fm::selection_report before, after;
  REQUIRE(b.select->report(child.handle, &before) == status::ok);
  CHECK(before.refreshes == 1);
  for (int i = 0; i < 23; ++i) REQUIRE(b.engine->step({&parent, &child}, {1, 1}) == status::ok);
  b.check_keys(parent);
  b.check_keys(child);
  REQUIRE(b.select->report(child.handle, &after) == status::ok);
  CHECK(after.refreshes == 4);
  CHECK(after.position == 101 + 24 - 1);
}

TEST_CASE("a sequence with tokens the key encoder has not seen is not attached", "[selector][keys]") {
  bench b;
  auto s = b.open(31);
  REQUIRE(b.engine->step(s, 40) == status::ok);
  b.select->detach(s.handle);
  CHECK_THROWS_AS(b.select->attach(s.handle), fm::argument_error);
  fm::selection_report r;
  CHECK(b.select->report(s.handle, &r) == status::unknown_sequence);
  fm::selection_policy all = b.policy;
  all.mode = fm::selection_mode::everything;
  CHECK_NOTHROW(b.select->attach(s.handle, &all));
}

TEST_CASE("a fork may have a policy of its own", "[selector][keys]") {
  bench b;
  auto parent = b.open(33);
  REQUIRE(b.engine->step(parent, 400) == status::ok);
  fm::selection_policy wide = b.policy;
  wide.budget_fraction = 0.5;
  wide.interval = 4;
  toy::sequence child = parent;
  child.handle = b.store.fork(parent.handle, fm::sequence_options_for(wide, b.geometry, 1200));
  b.select->attach_fork(parent.handle, child.handle, &wide);
  child.branches.push_back({child.tokens, 98});
  for (int i = 0; i < 24; ++i) REQUIRE(b.engine->step({&parent, &child}, {1, 1}) == status::ok);
  b.check_keys(child);
  fm::selection_report mine, own;
  REQUIRE(b.select->report(parent.handle, &mine) == status::ok);
  REQUIRE(b.select->report(child.handle, &own) == status::ok);
  CHECK(mine.budget == fm::budget_chunks(b.policy, b.geometry, mine.complete_chunks));
  CHECK(own.budget == fm::budget_chunks(wide, b.geometry, own.complete_chunks));
  CHECK(own.refreshes > mine.refreshes);
}

TEST_CASE("a fork of a sequence that was not observed is not attached with a policy that selects",
          "[selector][keys]") {
  bench b;
  fm::selection_policy all = b.policy;
  all.mode = fm::selection_mode::everything;
  const auto parent = b.store.open(fm::sequence_options_for(all, b.geometry, 1200));
  b.select->attach(parent, &all);
  toy::sequence s;
  s.handle = parent;
  s.tag = 3;
  REQUIRE(b.engine->step(s, 40) == status::ok);
  const auto child = b.store.fork(parent, fm::sequence_options_for(b.policy, b.geometry, 1200));
  CHECK_THROWS_AS(b.select->attach_fork(parent, child, &b.policy), fm::argument_error);
  fm::selection_report r;
  CHECK(b.select->report(child, &r) == status::unknown_sequence);
  CHECK_NOTHROW(b.select->attach_fork(parent, child));
}
