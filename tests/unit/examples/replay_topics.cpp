// SPDX-License-Identifier: MIT
// The planted structure of the deepseek_v4_replay example.
#include <algorithm>
#include <random>
#include <set>
#include <stdexcept>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "topics.hpp"

using replay::topic_plan;
using replay::topic_rule;

TEST_CASE("a topic has its number of chunks, and from one to the next the drift changes") {
  const auto seed = flashmemory_test::fresh_seed();
  const auto [planted, drift, topics] = GENERATE(table<int, int, int>(
      {{1, 1, 1}, {1, 1, 5}, {10, 3, 4}, {64, 1, 6}, {97, 10, 12}, {398, 40, 30}, {7, 7, 9}}));
  CAPTURE(seed, planted, drift, topics);
  const topic_rule rule{planted, drift, topics, 64};
  const std::int32_t first = 3, end = first + planted + (topics - 1) * drift + int(seed % 50);
  const topic_plan plan(rule, first, end, seed);
  for (std::int32_t t = 0; t < topics; ++t) {
    const auto list = plan.chunks_of(t);
    const std::set<std::int32_t> chunks(list.begin(), list.end());
    REQUIRE(int(chunks.size()) == planted);
    REQUIRE(*chunks.begin() >= first);
    REQUIRE(*chunks.rbegin() < end);
    for (std::int32_t c = -2; c < end + 2; ++c) REQUIRE(plan.has(t, c) == (chunks.count(c) == 1));
    if (t == 0) continue;
    int kept = 0;
    for (const std::int32_t c : plan.chunks_of(t - 1)) kept += int(chunks.count(c));
    REQUIRE(kept == planted - drift);
  }
  CHECK(!plan.has(-1, plan.chunks_of(0)[0]));
  CHECK(!plan.has(topics, plan.chunks_of(topics - 1).back()));
}

TEST_CASE("each topic of a chunk is carried by exactly one entry, and other chunks carry none") {
  const auto seed = flashmemory_test::fresh_seed();
  const std::int32_t planted = GENERATE(1, 13, 64, 200), drift = GENERATE(1, 5, 20),
                     entries = GENERATE(8, 64);
  if (drift > planted || (planted + drift - 1) / drift > entries) return;
  const topic_rule rule{planted, drift, 7, entries};
  const std::int32_t end = 1 + planted + 6 * drift + 20;
  const topic_plan plan(rule, 1, end, seed);
  CAPTURE(seed, planted, drift, entries);
  for (std::int32_t c = 0; c < end; ++c) {
    std::vector<int> carried(7);
    for (std::int32_t e = 0; e < entries; ++e) {
      const std::int32_t t = rule.topic_of(plan.places()[std::size_t(c)], e);
      REQUIRE(t >= -1);
      REQUIRE(t < 7);
      if (t < 0) continue;
      ++carried[std::size_t(t)];
      REQUIRE(rule.entry_of(plan.places()[std::size_t(c)], t) == e);
    }
    for (std::int32_t t = 0; t < 7; ++t) REQUIRE(carried[std::size_t(t)] == (plan.has(t, c) ? 1 : 0));
  }
}

TEST_CASE("the same seed plants the same chunks, another one others") {
  const topic_rule rule{50, 5, 10, 64};
  const topic_plan a(rule, 1, 900, 11), b(rule, 1, 900, 11), c(rule, 1, 900, 12);
  CHECK(a.places() == b.places());
  CHECK(a.places() != c.places());
}

TEST_CASE("a rule that cannot work is refused with the reason") {
  using Catch::Matchers::Contains;
  const auto make = [](topic_rule rule, std::int32_t end) { return topic_plan(rule, 1, end, 1); };
  CHECK_THROWS_WITH(make({0, 1, 1, 64}, 100), Contains("no chunk"));
  CHECK_THROWS_WITH(make({10, 0, 1, 64}, 100), Contains("drift"));
  CHECK_THROWS_WITH(make({10, 11, 1, 64}, 100), Contains("drift"));
  CHECK_THROWS_WITH(make({10, 1, 0, 64}, 100), Contains("no topic"));
  CHECK_THROWS_WITH(make({10, 5, 4, 64}, 25), Contains("25 chunks are needed, 24"));
  CHECK_THROWS_WITH(make({65, 1, 1, 64}, 100), Contains("65 topics"));
  CHECK_NOTHROW(make({10, 5, 4, 64}, 26));
}
