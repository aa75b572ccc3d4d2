// SPDX-License-Identifier: MIT
#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/small_dual_encoder.hpp"

namespace fm = flashmemory;
using fm::selection_mode;
using fm::status;

namespace {

std::vector<fm::chunk_id> select(const fm::selection_policy& p, const std::vector<float>& scores,
                                 std::int64_t budget, fm::selection_plan* plan = nullptr) {
  const auto n = scores.size();
  std::vector<fm::chunk_id> kept(n), order(n);
  const auto made = fm::plan_selection(p, fm::view<const float, 1>(scores.data(), n), {}, budget,
                                       fm::view<fm::chunk_id, 1>(kept.data(), n),
                                       fm::view<fm::chunk_id, 1>(order.data(), n));
  kept.resize(std::size_t(made.chunks));
  if (plan != nullptr) *plan = made;
  return kept;
}

}  // namespace

TEST_CASE("permuting the candidates' scores permutes the kept set", "[select][property]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    fm::selection_policy p;
    p.mode = round % 2 ? selection_mode::budget : selection_mode::threshold;
    p.threshold = 100;
    const int n = std::uniform_int_distribution<int>(4, 200)(random);
    std::vector<float> scores(static_cast<std::size_t>(n));
    std::iota(scores.begin(), scores.end(), 0.0f);  // no ties
    std::shuffle(scores.begin(), scores.end(), random);
    std::vector<int> to(static_cast<std::size_t>(n));
    std::iota(to.begin(), to.end(), 0);
    std::shuffle(to.begin() + 1, to.end() - 2, random);  // sink and recent stay in place
    std::vector<float> moved(scores.size());
    for (std::size_t c = 0; c < scores.size(); ++c) moved[std::size_t(to[c])] = scores[c];
    const std::int64_t budget = std::uniform_int_distribution<int>(0, n)(random);
    CAPTURE(round, n, budget);
    auto expected = select(p, scores, budget);
    for (auto& c : expected) c = to[std::size_t(c)];
    REQUIRE(select(p, moved, budget) == expected);
  }
}

TEST_CASE("a larger budget keeps what a smaller one kept, in the same order", "[select][property]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    fm::selection_policy p;
    p.mode = round % 2 ? selection_mode::budget : selection_mode::threshold;
    const int n = std::uniform_int_distribution<int>(0, 80)(random);
    std::vector<float> scores;
    for (int c = 0; c < n; ++c) scores.push_back(float(std::uniform_int_distribution<int>(-9, 9)(random)));
    std::vector<fm::chunk_id> before;
    fm::selection_plan last;
    for (std::int64_t budget = 0; budget <= n + 1; ++budget) {
      fm::selection_plan plan;
      const auto kept = select(p, scores, budget, &plan);
      CAPTURE(round, n, budget);
      REQUIRE(kept.size() >= before.size());
      REQUIRE(std::equal(before.begin(), before.end(), kept.begin()));
      REQUIRE(std::set<fm::chunk_id>(kept.begin(), kept.end()).size() == kept.size());
      REQUIRE(plan.chunks <= std::max<std::int64_t>(budget, std::min(n, 3)));
      if (budget > 0) REQUIRE(plan.above_dropped <= last.above_dropped);
      last = plan;
      before = kept;
    }
    if (p.mode == selection_mode::budget) REQUIRE(std::int64_t(before.size()) == n);
  }
}

TEST_CASE("budget_chunks never shrinks while a sequence grows, and the quota always holds it",
          "[select][property]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto g = toy::geometry();
  for (int round = 0; round < 200; ++round) {
    fm::selection_policy p;
    p.interval = std::uniform_int_distribution<int>(1, 40)(random);
    p.sink_chunks = std::uniform_int_distribution<int>(0, 3)(random);
    p.recent_chunks = std::uniform_int_distribution<int>(0, 3)(random);
    p.budget_fraction = std::uniform_real_distribution<double>(0, 1)(random);
    if (round % 3 == 0) p.max_chunks = std::uniform_int_distribution<int>(6, 50)(random);
    const std::int64_t tokens = std::uniform_int_distribution<int>(1, 2000)(random);
    const auto quota = fm::sequence_options_for(p, g, tokens).max_resident_chunks;
    std::int64_t before = 0;
    for (std::int64_t n = 0; n <= tokens / 8; ++n) {
      const std::int64_t budget = fm::budget_chunks(p, g, n);
      REQUIRE(budget >= before);
      REQUIRE(budget <= n);
      const std::int64_t all = g.chunks_for(tokens);
      REQUIRE((quota == all || budget + 1 + (p.interval + 7) / 8 <= quota));
      before = budget;
    }
  }
}

TEST_CASE("random steps of many sequences: counters add up and the sets are what the reports say",
          "[select][property]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  const auto g = toy::geometry();
  fm::tiered_chunk_store store(toy::store_options(g));
  fm::dual_encoder_indexer index(toy::small_dual_encoder(seed));
  fm::selection_policy p;
  p.interval = 8;
  p.mode = draw(0, 1) ? selection_mode::budget : selection_mode::threshold;
  p.hysteresis = 0.25f;
  fm::selector_options o;
  o.max_rollback_tokens = 8;
  o.max_sequences = 6;
  fm::selector select(store, index, p, o);
  toy::engine engine(store, select);
  std::vector<toy::sequence> live;
  std::uint64_t tag = 0;
  std::int64_t refreshes = 0;
  std::map<std::uint32_t, std::int64_t> refreshed;  // of the sequence in each place
  for (int round = 0; round < 600; ++round) {
    if (live.size() < 6 && draw(0, 5) == 0) {
      live.push_back(engine.open(fm::sequence_options_for(p, g, 1000), ++tag));
      REQUIRE(engine.step(live.back(), draw(1, 200)) == status::ok);
      refreshed[live.back().handle.index] = 1;
    }
    if (live.empty()) continue;
    const auto at = std::size_t(draw(0, std::int64_t(live.size()) - 1));
    if (draw(0, 30) == 0 || live[at].tokens > 900) {
      REQUIRE(store.close(live[at].handle) == status::ok);
      live.erase(live.begin() + std::ptrdiff_t(at));
      continue;
    }
    if (draw(0, 10) == 0) {
      const std::int64_t back = std::max<std::int64_t>(0, live[at].tokens - draw(1, 3));
      REQUIRE(store.truncate(live[at].handle, back) == status::ok);
      live[at].branches.push_back({back, ++tag});
      live[at].tokens = back;
    }
    std::vector<toy::sequence*> batch;
    std::vector<std::int64_t> tokens;
    for (auto& s : live)
      if (draw(0, 3) != 0) {
        batch.push_back(&s);
        tokens.push_back(draw(1, 3));
      }
    const auto before = select.counters();
    REQUIRE(engine.step(batch, tokens) == status::ok);
    const auto after = select.counters();
    REQUIRE(after.steps == before.steps + 1);
    REQUIRE(after.refreshes_failed == 0);
    std::int64_t now = 0;
    for (const auto* s : batch) {
      fm::selection_report r;
      REQUIRE(select.report(s->handle, &r) == status::ok);
      REQUIRE(r.recall.selected == r.recall.hits + r.recall.recalled + r.recall.refused);
      REQUIRE(r.recall.refused == 0);
      REQUIRE(r.plan.chunks <= r.budget);
      if (r.refreshes == refreshed[s->handle.index]) continue;
      refreshed[s->handle.index] = r.refreshes;
      REQUIRE(r.position == s->tokens - 1);
      ++now;
      const auto ids = toy::resident_ids(store, s->handle);
      const std::int64_t complete = s->tokens / 8;
      REQUIRE(std::count_if(ids.begin(), ids.end(), [&](fm::chunk_id c) { return c < complete; }) ==
              r.plan.chunks);
    }
    refreshes += now;
    REQUIRE(after.refreshes - before.refreshes == now);
  }
  CHECK(refreshes > 0);
}
