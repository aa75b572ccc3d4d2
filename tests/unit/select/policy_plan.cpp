// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/select/policy.hpp>
#include <limits>
#include <random>
#include <vector>

#include "tests/catch.hpp"
#include "tests/reference/selection.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
using fm::selection_mode;

namespace {

const float nan_score = std::numeric_limits<float>::quiet_NaN();
const float inf_score = std::numeric_limits<float>::infinity();

struct outcome {
  fm::selection_plan plan;
  std::vector<fm::chunk_id> kept;
};

outcome run(const fm::selection_policy& policy, const std::vector<float>& scores,
            const std::vector<std::uint8_t>& resident, std::int64_t budget) {
  outcome o;
  const auto n = scores.size();
  o.kept.resize(n + 1, -7);
  std::vector<fm::chunk_id> order(n + 1);
  o.plan = fm::plan_selection(
      policy, fm::view<const float, 1>(scores.data(), n),
      fm::view<const std::uint8_t, 1>(resident.empty() ? nullptr : resident.data(), n), budget,
      fm::view<fm::chunk_id, 1>(o.kept.data(), n), fm::view<fm::chunk_id, 1>(order.data(), n));
  REQUIRE(o.kept.back() == -7);
  REQUIRE(o.plan.chunks <= std::int64_t(n));
  o.kept.resize(std::size_t(o.plan.chunks));
  return o;
}

}  // namespace

TEST_CASE("plan_selection agrees with the plain policy on random inputs", "[policy]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int round = 0; round < 20000; ++round) {
    fm::selection_policy p;
    p.mode = static_cast<selection_mode>(draw(0, 2));
    p.sink_chunks = draw(0, 3);
    p.recent_chunks = draw(0, 4);
    p.min_chunks = draw(0, 12);
    p.threshold = draw(0, 9) == 0 ? inf_score * (draw(0, 1) ? 1.0f : -1.0f) : 0.25f * float(draw(-4, 4));
    p.hysteresis = 0.25f * float(draw(0, 4));
    const int n = draw(0, 5) == 0 ? draw(0, 3) : draw(0, 70);
    const int levels = draw(1, 30);  // few levels make ties
    std::vector<float> scores;
    std::vector<std::uint8_t> resident;
    for (int c = 0; c < n; ++c) {
      const int kind = draw(0, 20);
      scores.push_back(kind == 0   ? nan_score
                       : kind == 1 ? inf_score
                       : kind == 2 ? -inf_score
                       : kind == 3 ? -0.0f
                                   : 0.125f * float(draw(-levels, levels)));
      resident.push_back(std::uint8_t(draw(0, 1) * draw(1, 255)));
    }
    if (draw(0, 3) == 0) resident.clear();
    const std::int64_t budget = draw(-1, n + 5);
    CAPTURE(round, int(p.mode), p.sink_chunks, p.recent_chunks, p.min_chunks, p.threshold, p.hysteresis, n,
            budget, scores);
    const outcome got = run(p, scores, resident, budget);
    const reference::plan want = reference::select(p, scores, resident, budget);
    REQUIRE(got.kept == want.kept);
    REQUIRE(got.plan.candidates == want.candidates);
    REQUIRE(got.plan.above == want.above);
    REQUIRE(got.plan.above_dropped == want.above_dropped);
    REQUIRE(got.plan.nan_scores == want.nan_scores);
  }
}

TEST_CASE("the kept chunks are sink and recent ascending, then the best, newer first on ties, NaN last",
          "[policy]") {
  fm::selection_policy p;
  const std::vector<float> scores = {9, 1, nan_score, 3, 1, 3, -inf_score, inf_score, 0, 0};
  CHECK(run(p, scores, {}, 5).kept == std::vector<fm::chunk_id>{0, 8, 9, 7, 5});
  CHECK(run(p, scores, {}, 9).kept == std::vector<fm::chunk_id>{0, 8, 9, 7, 5, 3, 4, 1, 6});
  const outcome all = run(p, scores, {}, 10);
  CHECK(all.kept.back() == 2);
  CHECK(all.plan.nan_scores == 1);
  CHECK(all.plan.candidates == 7);
}

TEST_CASE("forced chunks are kept even when the budget is smaller", "[policy]") {
  fm::selection_policy p;
  p.mode = GENERATE(selection_mode::budget, selection_mode::threshold);
  const std::vector<float> scores(12, 1.0f);
  for (const std::int64_t budget : {-3, 0, 1, 3})
    CHECK(run(p, scores, {}, budget).kept == std::vector<fm::chunk_id>{0, 10, 11});
  CHECK(run(p, {1.0f, 1.0f}, {}, 0).kept == std::vector<fm::chunk_id>{0, 1});
  CHECK(run(p, {}, {}, 4).kept.empty());
}

TEST_CASE("a resident chunk stays down to the threshold less the hysteresis, another needs the threshold",
          "[policy]") {
  fm::selection_policy p;
  p.mode = selection_mode::threshold;
  p.sink_chunks = p.recent_chunks = 0;
  p.threshold = 1;
  p.hysteresis = 0.5f;
  const std::vector<float> scores = {1.0f, 1.0f, 0.75f, 0.75f, 0.5f, 1.25f};
  const std::vector<std::uint8_t> resident = {0, 1, 1, 0, 1, 0};
  const outcome o = run(p, scores, resident, 6);
  CHECK(o.kept == std::vector<fm::chunk_id>{5, 1, 2});
  CHECK(o.plan.above == 3);
  CHECK(run(p, scores, {}, 6).kept == std::vector<fm::chunk_id>{5});
}

TEST_CASE("threshold mode shrinks to the forced chunks when nothing passes, and to min_chunks if asked",
          "[policy]") {
  fm::selection_policy p;
  p.mode = selection_mode::threshold;
  p.threshold = 5;
  std::vector<float> scores(20, 0.0f);
  scores[7] = 4;
  CHECK(run(p, scores, {}, 20).kept == std::vector<fm::chunk_id>{0, 18, 19});
  p.min_chunks = 5;
  CHECK(run(p, scores, {}, 20).kept == std::vector<fm::chunk_id>{0, 18, 19, 7, 17});
  CHECK(run(p, scores, {}, 4).kept == std::vector<fm::chunk_id>{0, 18, 19, 7});
}

TEST_CASE("everything keeps all chunks without reading scores", "[policy]") {
  fm::selection_policy p;
  p.mode = selection_mode::everything;
  std::vector<fm::chunk_id> kept(6), order;
  const auto plan = fm::plan_selection(p, fm::view<const float, 1>(nullptr, 6), {}, 0,
                                       fm::view<fm::chunk_id, 1>(kept.data(), 6), {});
  CHECK(plan.chunks == 6);
  CHECK(kept == std::vector<fm::chunk_id>{0, 4, 5, 3, 2, 1});
}

TEST_CASE("room that is too small gives an empty plan instead of a write beyond it", "[policy]") {
  fm::selection_policy p;
  const std::vector<float> scores(8, 1.0f);
  std::vector<fm::chunk_id> kept(8, -1), order(8);
  const fm::view<const float, 1> s(scores.data(), 8);
  CHECK(fm::plan_selection(p, s, {}, 8, fm::view<fm::chunk_id, 1>(kept.data(), 7),
                           fm::view<fm::chunk_id, 1>(order.data(), 8))
            .chunks == 0);
  CHECK(kept == std::vector<fm::chunk_id>(8, -1));
}
