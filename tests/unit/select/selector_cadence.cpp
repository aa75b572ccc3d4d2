// SPDX-License-Identifier: MIT
#include <flashmemory/indexer/controls.hpp>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

struct bench {
  fm::kv_geometry geometry = toy::geometry(0);
  fm::tiered_chunk_store store{toy::store_options(geometry, 80)};
  fm::recency_indexer index;
  fm::selection_policy policy;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  explicit bench(std::int32_t interval, bool stagger = false) {
    policy.interval = interval;
    policy.budget_fraction = 0.25;
    fm::selector_options o;
    o.max_sequences = 80;
    o.stagger = stagger;
    select = std::make_unique<fm::selector>(store, index, policy, o);
    engine = std::make_unique<toy::engine>(store, *select);
  }
  toy::sequence open(std::uint64_t tag, std::int64_t tokens = 1024) {
    return engine->open(fm::sequence_options_for(policy, geometry, tokens), tag);
  }
  fm::selection_report report(const toy::sequence& s) {
    fm::selection_report r;
    REQUIRE(select->report(s.handle, &r) == status::ok);
    return r;
  }
  /// Tokens at which `s` was refreshed while it grew to `until` tokens, `step` at a time.
  std::vector<std::int64_t> refreshes(toy::sequence& s, std::int64_t until, std::int64_t step = 1) {
    std::vector<std::int64_t> at;
    std::int64_t before = report(s).refreshes;
    while (s.tokens + step <= until) {
      REQUIRE(engine->step(s, step) == status::ok);
      const auto r = report(s);
      REQUIRE(r.refreshes - before <= 1);
      if (r.refreshes != before) at.push_back(s.tokens);
      if (r.refreshes != before) REQUIRE(r.position == s.tokens - 1);
      before = r.refreshes;
    }
    return at;
  }
};

}  // namespace

TEST_CASE(
    "a lone sequence is refreshed after its prompt and then every interval, whatever the prompt's length",
    "[selector]") {
  const std::int64_t prompt = GENERATE(1, 7, 8, 13, 64, 101);
  const std::int32_t interval = GENERATE(1, 5, 64);
  CAPTURE(prompt, interval);
  bench b(interval);
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, prompt) == status::ok);
  CHECK(b.report(s).reason == fm::refresh_reason::warm_start);
  CHECK(b.report(s).refreshes == 1);
  CHECK(b.report(s).complete_chunks == prompt / 8);
  std::vector<std::int64_t> expected;
  for (std::int64_t t = prompt + interval; t <= prompt + 3 * interval; t += interval) expected.push_back(t);
  CHECK(b.refreshes(s, prompt + 3 * interval) == expected);
  CHECK(b.report(s).reason == fm::refresh_reason::interval);
  CHECK(b.select->counters().refreshes == 4);
  CHECK(b.select->counters().refreshes_failed == 0);
}

TEST_CASE(
    "a staggered sequence refreshes early once, by what its prompt's length says, and then every interval",
    "[selector]") {
  const std::int64_t prompt = GENERATE(1, 7, 8, 13, 64, 101);
  const std::int32_t interval = GENERATE(1, 5, 64);
  CAPTURE(prompt, interval);
  bench alone(interval, true), twin(interval, true);
  auto s = alone.open(1), t = twin.open(2);
  REQUIRE(alone.engine->step(s, prompt) == status::ok);
  REQUIRE(twin.engine->step(t, prompt) == status::ok);
  const auto at = alone.refreshes(s, prompt + 3 * interval);
  REQUIRE(at.size() >= 2);
  CHECK(at[0] > prompt);
  CHECK(at[0] <= prompt + interval);
  for (std::size_t i = 1; i < at.size(); ++i) CHECK(at[i] == at[i - 1] + interval);
  CHECK(twin.refreshes(t, prompt + 3 * interval) == at);
}

TEST_CASE("when a sequence is refreshed does not depend on what else is served", "[selector]") {
  const std::uint32_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto prompt = std::int64_t(1 + random() % 200);
  bench alone(64, true), crowded(64, true);
  auto s = alone.open(1);
  REQUIRE(alone.engine->step(s, prompt) == status::ok);
  const auto expected = alone.refreshes(s, prompt + 200);
  std::vector<toy::sequence> others;
  for (int i = 0; i < 40; ++i) others.push_back(crowded.open(std::uint64_t(i) + 2));
  for (auto& other : others)
    REQUIRE(crowded.engine->step(other, std::int64_t(1 + random() % 200)) == status::ok);
  auto t = crowded.open(1);
  REQUIRE(crowded.engine->step(t, prompt) == status::ok);
  CHECK(crowded.refreshes(t, prompt + 200) == expected);
}

TEST_CASE("staggered sequences with prompts of different lengths refresh on different steps", "[selector]") {
  // Neighbouring lengths are the worst that a function of the length alone can meet.
  const std::int64_t count = GENERATE(2, 17, 64), first = GENERATE(1, 50, 333);
  CAPTURE(count, first);
  constexpr std::int64_t interval = 64;
  bench b(interval, true);
  std::vector<toy::sequence> sequences;
  for (std::int64_t i = 0; i < count; ++i) sequences.push_back(b.open(std::uint64_t(i) + 1));
  std::vector<toy::sequence*> all;
  std::vector<std::int64_t> prompts;
  for (toy::sequence& s : sequences) {
    prompts.push_back(first + std::int64_t(all.size()));
    all.push_back(&s);
  }
  REQUIRE(b.engine->step(all, prompts) == status::ok);
  const std::vector<std::int64_t> ones(std::size_t(count), 1);
  std::int64_t most = 0, total = 0;
  for (std::int64_t step = 1; step <= 2 * interval; ++step) {
    const auto before = b.select->counters().refreshes;
    REQUIRE(b.engine->step(all, ones) == status::ok);
    const auto now = b.select->counters().refreshes - before;
    most = std::max(most, now);
    total += now;
  }
  CHECK(total == 2 * count);
  CHECK(most <= 2);  // together 64 would meet
}

TEST_CASE("without staggering sequences that start together refresh together", "[selector]") {
  bench b(8, false);
  auto x = b.open(1), y = b.open(2);
  REQUIRE(b.engine->step({&x, &y}, {10, 10}) == status::ok);
  for (int step = 1; step <= 24; ++step) {
    const auto before = b.select->counters().refreshes;
    REQUIRE(b.engine->step({&x, &y}, {1, 1}) == status::ok);
    REQUIRE(b.select->counters().refreshes - before == (step % 8 == 0 ? 2 : 0));
  }
}

TEST_CASE("steps of several tokens refresh when at least an interval was processed", "[selector]") {
  bench b(10);
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 6) == status::ok);
  CHECK(b.refreshes(s, 6 + 40, 4) == std::vector<std::int64_t>{18, 30, 42});
}

TEST_CASE("request_refresh refreshes at the next call and starts a new interval", "[selector]") {
  bench b(16);
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 20) == status::ok);
  CHECK(b.refreshes(s, 25).empty());
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  CHECK(b.refreshes(s, 26) == std::vector<std::int64_t>{26});
  CHECK(b.report(s).reason == fm::refresh_reason::requested);
  CHECK(b.refreshes(s, 60) == std::vector<std::int64_t>{42, 58});
}

TEST_CASE("a rollback delays the refresh, a rollback by an interval or more makes it due", "[selector]") {
  bench b(16);
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 40) == status::ok);
  CHECK(b.refreshes(s, 55).empty());
  REQUIRE(b.store.truncate(s.handle, 50) == status::ok);
  s.tokens = 50;
  CHECK(b.refreshes(s, 60) == std::vector<std::int64_t>{56});
  const std::int64_t back = GENERATE(30, 39, 40);
  REQUIRE(b.store.truncate(s.handle, back) == status::ok);
  s.tokens = back;
  CAPTURE(back);
  if (back == 30)
    CHECK(b.refreshes(s, 48) == std::vector<std::int64_t>{31, 47});
  else if (back == 39)
    CHECK(b.refreshes(s, 58) == std::vector<std::int64_t>{40, 56});
  else
    CHECK(b.refreshes(s, 75) == std::vector<std::int64_t>{72});
}

TEST_CASE("a prompt in pieces is selected for again after its last piece", "[selector]") {
  bench b(16);
  auto s = b.open(1);
  CHECK(b.refreshes(s, 100, 25) == std::vector<std::int64_t>{25, 50, 75, 100});
  CHECK(b.report(s).complete_chunks == 12);
}

TEST_CASE("everything on a sequence that is resident as a whole is neither scored nor recalled",
          "[selector]") {
  toy::scripted_indexer index;
  const auto g = toy::geometry();
  fm::tiered_chunk_store inner(toy::store_options(g));
  toy::failing_store store(inner);
  fm::selection_policy p;
  p.interval = 8;
  p.mode = fm::selection_mode::everything;
  fm::selector_options o;
  o.stagger = false;
  fm::selector select(store, index, p, o);
  toy::engine engine(store, select);
  auto s = engine.open(fm::sequence_options_for(p, g, 512), 3);
  REQUIRE(engine.step(s, 100) == status::ok);
  for (int i = 0; i < 30; ++i) REQUIRE(engine.step(s) == status::ok);
  CHECK(index.scored == 0);
  CHECK(index.encoded == 0);
  CHECK(store.recalls == 0);
  fm::selection_report r;
  REQUIRE(select.report(s.handle, &r) == status::ok);
  CHECK(r.plan.chunks == r.complete_chunks);
  CHECK(r.complete_chunks == 124 / 8);
  CHECK(r.recall.hits == r.complete_chunks);
  CHECK(r.recall.selected == r.complete_chunks);
  CHECK(r.refreshes == 4);
}

TEST_CASE("the resident set after a refresh is sink, recent and the best chunks", "[selector]") {
  toy::scripted_indexer index;
  const auto g = toy::geometry();
  fm::tiered_chunk_store store(toy::store_options(g));
  fm::selection_policy p;
  p.interval = 8;
  p.budget_fraction = 0;
  p.max_chunks = 5;
  fm::selector_options o;
  o.stagger = false;
  fm::selector select(store, index, p, o);
  toy::engine engine(store, select);
  index.rule = [](const fm::score_request&, std::int64_t c) { return c == 7 || c == 11 ? 5.0f : -float(c); };
  auto s = engine.open(fm::sequence_options_for(p, g, 512), 3);
  REQUIRE(engine.step(s, 163) == status::ok);
  CHECK(toy::resident_ids(store, s.handle) == std::vector<fm::chunk_id>{0, 7, 11, 18, 19, 20});
  const auto scores = select.last_scores();
  REQUIRE(scores.shape[0] == 20);
  CHECK(scores(7) == 5);
  CHECK(scores(3) == -3);
  index.rule = [](const fm::score_request&, std::int64_t c) { return c == 3 ? 5.0f : -float(c); };
  for (int i = 0; i < 8; ++i) REQUIRE(engine.step(s) == status::ok);
  CHECK(toy::resident_ids(store, s.handle) == std::vector<fm::chunk_id>{0, 1, 3, 19, 20, 21});
  fm::selection_report r;
  REQUIRE(select.report(s.handle, &r) == status::ok);
  CHECK(r.budget == 5);
  CHECK(r.plan.chunks == 5);
  CHECK(r.recall.selected == r.recall.hits + r.recall.recalled + r.recall.refused);
  CHECK(r.recall.recalled == 2);
  CHECK(r.recall.refused == 0);
}

TEST_CASE("sequences with policies of their own keep them", "[selector]") {
  bench b(16);
  fm::selection_policy fast = b.policy;
  fast.interval = 3;
  fast.budget_fraction = 0.5;
  auto x = b.open(1);
  toy::sequence y;
  y.handle = b.store.open(fm::sequence_options_for(fast, b.geometry, 1024));
  y.tag = 2;
  b.select->attach(y.handle, &fast);
  REQUIRE(b.engine->step({&x, &y}, {160, 160}) == status::ok);
  CHECK(b.report(x).budget == 5);
  CHECK(b.report(y).budget == 10);
  for (int i = 0; i < 12; ++i) REQUIRE(b.engine->step({&x, &y}, {1, 1}) == status::ok);
  CHECK(b.report(y).refreshes >= 5);
  CHECK(b.report(x).refreshes <= 2);
}
