// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

constexpr float hold = 0.75f;
constexpr float infinite = std::numeric_limits<float>::infinity();

/// Scores of the next refresh by chunk; a sequence of 8-token chunks that is refreshed in every step.
struct bench {
  struct raw_indexer final : toy::scripted_indexer {
    explicit raw_indexer(bool log_odds) { taps_.log_odds = log_odds; }
  };
  raw_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store inner{toy::store_options(geometry)};
  toy::failing_store store{inner};
  fm::selection_policy policy;
  fm::selector_options options;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;
  std::vector<float> scores = std::vector<float>(200, -9.0f);

  explicit bench(bool log_odds = true, float share = hold) : index(log_odds) {
    policy.mode = fm::selection_mode::threshold;
    policy.interval = 1;
    policy.budget_fraction = 0;
    policy.hold = share;
    options.stagger = false;
    index.rule = [this](const fm::score_request&, std::int64_t c) { return scores[std::size_t(c)]; };
    select = make_selector(policy);
    engine = std::make_unique<toy::engine>(store, *select);
  }
  std::unique_ptr<fm::selector> make_selector(const fm::selection_policy& p) {
    return std::make_unique<fm::selector>(store, index, p, options);
  }
  toy::sequence open(std::int64_t prompt = 163) {
    auto s = engine->open(fm::sequence_options_for(policy, geometry, 800), 4);
    REQUIRE(engine->pass({&s}, {prompt}) == status::ok);
    return s;
  }
  /// Whether chunk 5 is there after a step in which it scored `value`.
  bool kept(toy::sequence& s, float value, std::size_t chunk = 5) {
    scores[chunk] = value;
    REQUIRE(engine->step(s) == status::ok);
    return resident(s, chunk);
  }
  bool resident(const toy::sequence& s, std::size_t chunk = 5) const {
    const auto ids = toy::resident_ids(inner, s.handle);
    return std::find(ids.begin(), ids.end(), fm::chunk_id(chunk)) != ids.end();
  }
};

/// Refreshes in which a chunk of that score stays above a threshold of log-odds 0 by holding alone.
int refreshes_above(double log_odds) {
  double p = 1 / (1 + std::exp(-log_odds));
  int count = 0;
  while ((p *= double(hold)) > 0.5) ++count;
  return count;
}

}  // namespace

TEST_CASE("a chunk keeps the held share of its probability from refresh to refresh", "[selector][hold]") {
  const float score = GENERATE(0.5f, 1.0f, 2.0f, 5.0f, 200.0f, infinite);
  CAPTURE(score);
  bench b;
  auto s = b.open();
  CHECK_FALSE(b.kept(s, -1.0f));
  CHECK(b.kept(s, score));
  const int stays = refreshes_above(double(score));
  for (int i = 0; i < stays; ++i) CHECK(b.kept(s, -9.0f));
  CHECK_FALSE(b.kept(s, -9.0f));
  CHECK_FALSE(b.kept(s, -infinite));
  CHECK(b.kept(s, 0.25f));
}

TEST_CASE("where scores are no log-odds a chunk keeps the held share of the score itself, of none below zero",
          "[selector][hold]") {
  bench b(false);
  b.policy.threshold = 1;
  b.select = b.make_selector(b.policy);
  b.engine = std::make_unique<toy::engine>(b.store, *b.select);
  auto s = b.open();
  CHECK(b.kept(s, 2.0f));
  CHECK(b.kept(s, 0.0f));        // 1.5
  CHECK(b.kept(s, 0.0f));        // 1.125
  CHECK_FALSE(b.kept(s, 0.0f));  // 0.84
  bench low(false);
  low.policy.threshold = -1;
  low.select = low.make_selector(low.policy);
  low.engine = std::make_unique<toy::engine>(low.store, *low.select);
  auto t = low.open();
  CHECK_FALSE(low.kept(t, -1.25f));
  CHECK_FALSE(low.kept(t, -1.25f));  // three quarters of it would pass
}

TEST_CASE("held scores rank beside new ones in a budget", "[selector][hold]") {
  bench b;
  b.policy.mode = fm::selection_mode::budget;
  b.policy.max_chunks = 4;  // one besides sink and recent
  b.select = b.make_selector(b.policy);
  b.engine = std::make_unique<toy::engine>(b.store, *b.select);
  auto s = b.open();
  CHECK(b.kept(s, 3.0f));
  b.scores[7] = 0.7f;  // p = 0.67; of 0.95 are left 0.71, 0.54
  CHECK(b.kept(s, -9.0f));
  CHECK_FALSE(b.kept(s, -9.0f));
  CHECK(b.resident(s, 7));
}

TEST_CASE("a score that is no number ranks last for one refresh and costs the chunk nothing that it held",
          "[selector][hold]") {
  bench b;
  auto s = b.open();
  CHECK(b.kept(s, 5.0f));
  CHECK_FALSE(b.kept(s, std::numeric_limits<float>::quiet_NaN()));
  fm::selection_report r;
  REQUIRE(b.select->report(s.handle, &r) == status::ok);
  CHECK(r.plan.nan_scores == 1);
  CHECK(b.kept(s, -9.0f));
}

TEST_CASE("a refresh that fails takes nothing from what is held", "[selector][hold]") {
  bench b;
  auto s = b.open();
  CHECK(b.kept(s, 200.0f));
  b.store.fail_recall = status::bad_argument;
  b.scores[5] = -9.0f;
  for (int i = 0; i < 7; ++i) CHECK(b.engine->step(s) == status::bad_argument);
  b.store.fail_recall = status::ok;
  CHECK(b.kept(s, -9.0f));
  CHECK(b.kept(s, -9.0f));
  CHECK_FALSE(b.kept(s, -9.0f));
}

TEST_CASE("chunks that a rollback has replaced hold nothing, those before it all they held",
          "[selector][hold]") {
  bench b;
  auto s = b.open();
  const std::int64_t back = GENERATE(120, 121, 127);
  b.scores[14] = 200.0f;  // tokens [112, 120)
  b.scores[15] = 200.0f;
  REQUIRE(b.engine->step(s) == status::ok);
  b.scores[14] = b.scores[15] = -9.0f;
  REQUIRE(b.inner.truncate(s.handle, back) == status::ok);
  s.branches.push_back({back, 9});
  s.tokens = back;
  REQUIRE(b.engine->step(s, 163 - back) == status::ok);
  CHECK(b.resident(s, 14));
  CHECK_FALSE(b.resident(s, 15));
}

TEST_CASE("forks go on with what their parent held, as far as their policies hold anything",
          "[selector][hold]") {
  bench b;
  auto s = b.open();
  CHECK(b.kept(s, 200.0f));
  b.scores[5] = -9.0f;
  fm::selection_policy plain = b.policy;
  plain.hold = 0;
  const auto fork = [&](const fm::selection_policy* policy) {
    toy::sequence child = s;
    child.handle = b.store.fork(s.handle, fm::sequence_options_for(b.policy, b.geometry, 800));
    b.select->attach_fork(s.handle, child.handle, policy);
    return child;
  };
  auto same = fork(nullptr), without = fork(&plain);
  REQUIRE(b.engine->step({&s, &same, &without}, {1, 1, 1}) == status::ok);
  CHECK(b.resident(s));
  CHECK(b.resident(same));
  CHECK_FALSE(b.resident(without));
  REQUIRE(b.engine->step({&s, &same}, {1, 1}) == status::ok);
  REQUIRE(b.engine->step({&s, &same}, {1, 1}) == status::ok);
  CHECK_FALSE(b.resident(s));
  CHECK_FALSE(b.resident(same));
}

TEST_CASE("a place that another sequence had holds nothing of it", "[selector][hold]") {
  bench b;
  auto s = b.open();
  CHECK(b.kept(s, 200.0f));
  REQUIRE(b.store.close(s.handle) == status::ok);
  auto t = b.open();
  CHECK_FALSE(b.kept(t, -9.0f));
}

TEST_CASE("what is held travels with a saved state", "[selector][hold]") {
  bench b;
  auto s = b.open();
  CHECK(b.kept(s, 200.0f));
  const std::vector<std::byte> state = b.select->save_state(s.handle);
  b.select->detach(s.handle);
  b.scores[5] = -9.0f;
  SECTION("to a policy that holds") {
    b.select->load_state(s.handle, state.data(), state.size());
    CHECK(b.select->save_state(s.handle) == state);
    CHECK(b.kept(s, -9.0f));
    CHECK(b.kept(s, -9.0f));
    CHECK_FALSE(b.kept(s, -9.0f));
  }
  SECTION("and is left out where the policy in force holds nothing") {
    fm::selection_policy plain = b.policy;
    plain.hold = 0;
    b.select->load_state(s.handle, state.data(), state.size(), &plain);
    CHECK_FALSE(b.kept(s, -9.0f));
  }
  SECTION("but not past the sequence's chunks, nor as something that is no number") {
    const auto forged = [&](std::size_t at, auto value) {
      auto bytes = state;
      std::memcpy(bytes.data() + at, &value, sizeof value);
      const std::uint64_t sum = XXH3_64bits(bytes.data(), bytes.size() - 8);
      std::memcpy(bytes.data() + bytes.size() - 8, &sum, 8);
      return bytes;
    };
    const std::size_t floats = 20 * sizeof(float), first = state.size() - 8 - floats;
    std::int64_t count = 0;
    std::memcpy(&count, state.data() + first - 8, 8);
    REQUIRE(count == 20);
    for (const auto& bad : {forged(first - 8, std::int64_t{21}), forged(first - 8, std::int64_t{19}),
                            forged(first + 12, std::numeric_limits<float>::quiet_NaN())})
      CHECK_THROWS_AS(b.select->load_state(s.handle, bad.data(), bad.size()), fm::format_error);
  }
}

TEST_CASE("a state of version 2, which knew neither held scores nor kinds of index-key taps, is read",
          "[selector][hold][state]") {
  bench b(true, 0);
  auto s = b.open();
  REQUIRE(b.engine->step(s) == status::ok);
  auto bytes = b.select->save_state(s.handle);
  b.select->detach(s.handle);
  // Header 24, query sources 8 + 16 with the width's 8, then per key source: layer, kind, width, window.
  const std::size_t sources = 24 + 8 + 16;
  std::int64_t count = 0;
  std::memcpy(&count, bytes.data() + sources, 8);
  REQUIRE(count == 2);
  for (std::size_t k = 2; k-- > 0;) {
    const auto kind = bytes.begin() + std::ptrdiff_t(sources + 8 + k * 24 + 4);
    REQUIRE(*kind == std::byte{0});
    bytes.erase(kind, kind + 4);
  }
  bytes.resize(bytes.size() - 16);  // checksum and number of held scores
  bytes[8] = std::byte{2};
  const std::uint64_t total = bytes.size() + 8;
  std::memcpy(bytes.data() + 16, &total, 8);
  const std::uint64_t sum = XXH3_64bits(bytes.data(), bytes.size());
  bytes.resize(total);
  std::memcpy(bytes.data() + total - 8, &sum, 8);
  b.select->load_state(s.handle, bytes.data(), bytes.size());
  CHECK(b.engine->step(s) == status::ok);
}

TEST_CASE("over any run of scores what is selected is what the plain recursion selects", "[selector][hold]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  bench b;
  auto s = b.open();
  std::vector<double> held(200, 0.0);
  for (int step = 0; step < 60; ++step) {
    for (float& score : b.scores) score = normal(random);
    const std::int64_t before = s.tokens / 8;
    REQUIRE(b.engine->step(s) == status::ok);
    const std::int64_t chunks = s.tokens / 8;
    for (std::int64_t c = before; c < chunks; ++c) held[std::size_t(c)] = 0;
    for (std::size_t c = 0; c < std::size_t(chunks); ++c) {
      held[c] = std::max(1 / (1 + std::exp(-double(b.scores[c]))), held[c] * double(hold));
      if (c == 0 || std::int64_t(c) + 2 >= chunks || std::fabs(held[c] - 0.5) < 1e-5) continue;
      CAPTURE(step, c, held[c]);
      REQUIRE(b.resident(s, c) == (held[c] > 0.5));
    }
  }
}
