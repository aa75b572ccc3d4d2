// SPDX-License-Identifier: MIT
#include <limits>

#include "tests/catch.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::fallback_stage;
using fm::status;

namespace {

/// One sequence of 20 complete chunks and more, budget 6, refreshed at every step.
struct bench {
  toy::scripted_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store store{toy::store_options(geometry)};
  fm::selection_policy policy;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;
  toy::sequence s;
  int hot = 0;  ///< chunks [1, 1 + hot) score above the threshold

  explicit bench(const fm::fallback_policy& fallback, std::int64_t quota = 0) {
    policy.interval = 1;
    policy.budget_fraction = 0;
    policy.max_chunks = 6;
    policy.fallback = fallback;
    select = std::make_unique<fm::selector>(store, index, policy);
    engine = std::make_unique<toy::engine>(store, *select);
    index.rule = [this](const fm::score_request&, std::int64_t c) {
      return c >= 1 && c < 1 + hot ? 1.0f : -1.0f;
    };
    auto options = fm::sequence_options_for(policy, geometry, 800);
    options.max_resident_chunks = quota == 0 ? 100 : quota;
    s = engine->open(options, 1);
    REQUIRE(engine->pass({&s}, {163}) == status::ok);
  }
  fm::selection_report refresh() {
    REQUIRE(engine->step(s) == status::ok);
    fm::selection_report r;
    REQUIRE(select->report(s.handle, &r) == status::ok);
    REQUIRE(r.position == s.tokens - 1);
    REQUIRE(r.recall.selected == r.recall.hits + r.recall.recalled + r.recall.refused);
    return r;
  }
};

fm::fallback_policy dropping(float share, std::int32_t patience = 1, std::int32_t recover = 2) {
  fm::fallback_policy f;
  f.max_dropped = share;
  f.patience = patience;
  f.recover_after = recover;
  return f;
}

}  // namespace

TEST_CASE("dropping too many chunks above the threshold widens the budget, then attends to everything",
          "[fallback]") {
  bench b(dropping(0.5f));
  b.hot = 3;
  CHECK(b.refresh().stage == fallback_stage::normal);
  b.hot = 6;  // 3 of 6 dropped: not more than half
  CHECK(b.refresh().stage == fallback_stage::normal);
  b.hot = 7;
  auto r = b.refresh();
  CHECK(r.stage == fallback_stage::widened);
  CHECK(r.budget == 12);
  CHECK(r.plan.chunks == 12);
  CHECK(r.plan.above == 7);
  CHECK(r.plan.above_dropped == 0);
  CHECK(b.select->counters().widened == 1);
  CHECK(b.select->counters().everything == 0);
  b.hot = 17;  // of 17, 12 - 3 stay
  CHECK(b.refresh().stage == fallback_stage::widened);
  b.policy = {};
}

TEST_CASE("at last everything is kept, and one stage at a time is given back", "[fallback]") {
  bench b(dropping(0.25f));
  b.hot = 17;
  CHECK(b.refresh().stage == fallback_stage::widened);
  auto r = b.refresh();
  CHECK(r.stage == fallback_stage::everything);
  CHECK(r.plan.chunks == r.complete_chunks);
  CHECK(r.plan.above_dropped == 0);
  CHECK(b.select->counters().widened == 2);
  CHECK(b.select->counters().everything == 1);
  for (int i = 0; i < 5; ++i) CHECK(b.refresh().stage == fallback_stage::everything);
  b.hot = 9;  // the widened budget is enough for them
  CHECK(b.refresh().stage == fallback_stage::everything);
  CHECK(b.refresh().stage == fallback_stage::widened);
  CHECK(b.select->counters().recovered == 1);
  for (int i = 0; i < 5; ++i) CHECK(b.refresh().stage == fallback_stage::widened);
  b.hot = 2;
  CHECK(b.refresh().stage == fallback_stage::widened);
  r = b.refresh();
  CHECK(r.stage == fallback_stage::normal);
  CHECK(r.plan.chunks == 6);
  CHECK(b.select->counters().recovered == 2);
}

TEST_CASE("patience asks for that many calls in a row, recovery for that many quiet refreshes in a row",
          "[fallback]") {
  bench b(dropping(0.0f, 3, 3));
  const auto stage = [&](int hot) {
    b.hot = hot;
    return b.refresh().stage;
  };
  CHECK(stage(9) == fallback_stage::normal);
  CHECK(stage(9) == fallback_stage::normal);
  CHECK(stage(0) == fallback_stage::normal);
  CHECK(stage(9) == fallback_stage::normal);
  CHECK(stage(9) == fallback_stage::normal);
  CHECK(stage(9) == fallback_stage::widened);
  CHECK(stage(0) == fallback_stage::widened);
  CHECK(stage(0) == fallback_stage::widened);
  CHECK(stage(9) == fallback_stage::widened);
  CHECK(stage(0) == fallback_stage::widened);
  CHECK(stage(0) == fallback_stage::widened);
  CHECK(stage(0) == fallback_stage::normal);
}

TEST_CASE("by default nothing ever falls back", "[fallback]") {
  bench b(fm::fallback_policy{});
  b.hot = 19;
  for (int i = 0; i < 5; ++i) {
    const auto r = b.refresh();
    CHECK(r.stage == fallback_stage::normal);
    CHECK(r.plan.above_dropped > 10);
  }
}

TEST_CASE("little attention mass widens; only what was reported since the last refresh counts",
          "[fallback]") {
  fm::fallback_policy f;
  f.min_attention_mass = 0.9f;
  f.recover_after = 2;
  bench b(f);
  CHECK(b.refresh().stage == fallback_stage::normal);
  REQUIRE(b.select->report_attention_mass(b.s.handle, 0.95f) == status::ok);
  CHECK(b.refresh().stage == fallback_stage::normal);
  REQUIRE(b.select->report_attention_mass(b.s.handle, 0.5f) == status::ok);
  REQUIRE(b.select->report_attention_mass(b.s.handle, 1.0f) == status::ok);
  CHECK(b.refresh().stage == fallback_stage::widened);
  CHECK(b.refresh().stage == fallback_stage::widened);
  CHECK(b.refresh().stage == fallback_stage::normal);

  CHECK(b.select->report_attention_mass(b.s.handle, -0.1f) == status::bad_argument);
  CHECK(b.select->report_attention_mass(b.s.handle, 1.5f) == status::bad_argument);
  CHECK(b.select->report_attention_mass(b.s.handle, std::numeric_limits<float>::quiet_NaN()) ==
        status::not_finite);
  CHECK(b.refresh().stage == fallback_stage::normal);
}

TEST_CASE("fallback uses what the quota has and leaves room for the tokens to come", "[fallback]") {
  bench b(dropping(0.0f), 10);
  b.hot = 17;
  auto r = b.refresh();
  CHECK(r.stage == fallback_stage::widened);
  CHECK(r.budget == 7);  // 10 slots, the open chunk, two recent ones of a piece of a prompt
  CHECK(r.recall.refused == 0);
  r = b.refresh();
  CHECK(r.stage == fallback_stage::everything);
  CHECK(r.plan.chunks == r.complete_chunks);
  CHECK(r.recall.refused == r.complete_chunks - 7);
  for (int i = 0; i < 40; ++i) b.refresh();
}

TEST_CASE("a failed refresh leaves the stage as it was", "[fallback]") {
  bench b(dropping(0.0f));
  toy::failing_store store(b.store);
  fm::selector select(store, b.index, b.policy);
  toy::engine engine(store, select);
  auto options = fm::sequence_options_for(b.policy, b.geometry, 800);
  options.max_resident_chunks = 40;
  auto s = engine.open(options, 4);
  b.hot = 0;
  REQUIRE(engine.step(s, 163) == status::ok);
  b.hot = 17;
  store.fail_recall = status::io_error;
  CHECK(engine.step(s) == status::io_error);
  CHECK(select.counters().widened == 0);
  fm::selection_report r;
  REQUIRE(select.report(s.handle, &r) == status::ok);
  CHECK(r.stage == fallback_stage::normal);
  store.fail_recall = status::ok;
  REQUIRE(engine.step(s) == status::ok);
  REQUIRE(select.report(s.handle, &r) == status::ok);
  CHECK(r.stage == fallback_stage::widened);
  CHECK(select.counters().widened == 1);
}

TEST_CASE("threshold mode keeps a resident chunk within the hysteresis and lets go of it below",
          "[fallback]") {
  toy::scripted_indexer index;
  const auto g = toy::geometry();
  fm::tiered_chunk_store store(toy::store_options(g));
  fm::selection_policy p;
  p.mode = fm::selection_mode::threshold;
  p.interval = 1;
  p.hysteresis = 0.5f;
  p.budget_fraction = 0;
  p.max_chunks = 10;
  fm::selector select(store, index, p);
  toy::engine engine(store, select);
  float score = 0.25f;
  index.rule = [&](const fm::score_request&, std::int64_t c) { return c == 5 ? score : -1.0f; };
  auto s = engine.open(fm::sequence_options_for(p, g, 800), 4);
  const auto kept = [&](float value) {
    score = value;
    REQUIRE(engine.step(s) == status::ok);
    const auto ids = toy::resident_ids(store, s.handle);
    return std::find(ids.begin(), ids.end(), 5) != ids.end();
  };
  REQUIRE(engine.pass({&s}, {163}) == status::ok);
  CHECK_FALSE(kept(-0.25f));
  CHECK(kept(0.25f));
  CHECK(kept(-0.25f));
  CHECK(kept(-0.375f));
  CHECK_FALSE(kept(-0.5f));
  CHECK_FALSE(kept(-0.25f));
  CHECK(toy::resident_ids(store, s.handle).size() == 4);
}

TEST_CASE("a threshold without a budget may keep everything, and gives back what nobody needs",
          "[fallback]") {
  toy::scripted_indexer index;
  const fm::kv_geometry g = toy::geometry();
  fm::tiered_chunk_store store{toy::store_options(g)};
  fm::selection_policy p;
  p.mode = fm::selection_mode::threshold;
  p.budget_fraction = 0;
  p.interval = 1;
  fm::selector select(store, index, p);
  toy::engine engine(store, select);
  int hot = 0;
  index.rule = [&](const fm::score_request&, std::int64_t c) { return c < hot ? 1.0f : -1.0f; };
  auto s = engine.open(fm::sequence_options_for(p, g, 800), 6);
  REQUIRE(engine.pass({&s}, {163}) == status::ok);
  const std::int64_t complete = 163 / g.tokens_per_chunk();
  for (const int wanted : {0, int(complete), 5, 0}) {
    hot = wanted;
    REQUIRE(engine.step(s) == status::ok);
    fm::sequence_info info;
    REQUIRE(store.info(s.handle, &info) == status::ok);
    const std::int64_t forced = p.sink_chunks + p.recent_chunks;
    const std::int64_t open = info.tokens % g.tokens_per_chunk() != 0;
    CAPTURE(wanted, info.resident_chunks, info.complete_chunks);
    const std::int64_t kept =
        std::min(std::max<std::int64_t>(hot, p.sink_chunks) + p.recent_chunks, complete);
    CHECK(info.resident_chunks == std::max(forced, kept) + open);
    CHECK(info.slot_bytes == std::size_t(info.resident_chunks) * fm::chunk_layout(g).chunk_bytes());
  }
}
