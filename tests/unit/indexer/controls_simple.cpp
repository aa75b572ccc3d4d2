// SPDX-License-Identifier: MIT
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/controls.hpp>
#include <limits>
#include <set>
#include <vector>

#include "tests/catch.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

std::vector<float> score(fm::indexer& index, std::uint32_t sequence, std::int64_t position,
                         std::int64_t chunks, std::uint32_t generation = 1) {
  fm::score_request r;
  r.sequence = {sequence, generation};
  r.position = position;
  r.chunks = chunks;
  std::vector<float> out(std::size_t(chunks), -1.0f);
  REQUIRE(index.score(r, fm::view<float, 1>(out.data(), chunks)) == status::ok);
  return out;
}

}  // namespace

TEST_CASE("recency scores a chunk with its number", "[controls]") {
  fm::recency_indexer index;
  CHECK(score(index, 0, 5, 4) == std::vector<float>{0, 1, 2, 3});
  CHECK(score(index, 0, 5, 0).empty());
}

TEST_CASE("random scores are a pure function of seed, sequence, position and chunk, without ties",
          "[controls]") {
  fm::random_indexer a(1), b(1), other(2);
  const auto first = score(a, 3, 100, 500);
  CHECK(score(b, 3, 100, 500) == first);
  CHECK(score(a, 3, 100, 200) == std::vector<float>(first.begin(), first.begin() + 200));
  CHECK(score(other, 3, 100, 500) != first);
  CHECK(score(a, 4, 100, 500) != first);
  CHECK(score(a, 3, 164, 500) != first);
  CHECK(score(a, 3, 100, 500, 2) != first);  // another sequence in the same place
  CHECK(std::set<float>(first.begin(), first.end()).size() > 498);
  double mean = 0;
  for (const float x : first) {
    REQUIRE((x >= 0 && x < 1));
    mean += double(x) / 500;
  }
  CHECK(mean == Approx(0.5).margin(0.07));  // five standard deviations
}

TEST_CASE("random ranks every chunk first about equally often", "[controls]") {
  fm::random_indexer index(99);
  std::vector<int> wins(8, 0);
  for (std::int64_t p = 0; p < 8000; ++p) {
    const auto s = score(index, 0, p, 8);
    ++wins[std::size_t(std::max_element(s.begin(), s.end()) - s.begin())];
  }
  for (const int w : wins) CHECK(std::abs(w - 1000) < 150);
}

TEST_CASE("an oracle scores the largest mass recorded in the horizon after the position", "[controls]") {
  fm::oracle_indexer index(4);
  const auto record = [&](std::int64_t position, std::vector<float> mass) {
    index.record(7, position, fm::view<const float, 1>(mass.data(), mass.size()));
  };
  record(14, {0.1f, 0.9f});
  record(10, {1.0f, 1.0f, 1.0f});
  record(11, {0.5f, 0.25f});
  record(15, {0.7f, 0.7f, 0.7f, 0.7f});
  CHECK(score(index, 7, 10, 3) == std::vector<float>{0.5f, 0.9f, 0});
  CHECK(score(index, 7, 11, 3) == std::vector<float>{0.7f, 0.9f, 0.7f});
  CHECK(score(index, 7, 9, 2) == std::vector<float>{1.0f, 1.0f});
  CHECK(score(index, 7, 15, 2) == std::vector<float>{0, 0});
  CHECK(score(index, 6, 10, 2) == std::vector<float>{0, 0});
  record(14, {0.2f, 0.2f});
  CHECK(score(index, 7, 10, 2) == std::vector<float>{0.5f, 0.25f});
  record(13, {std::numeric_limits<float>::quiet_NaN()});
  const auto s = score(index, 7, 10, 2);
  CHECK(std::isnan(s[0]));
  CHECK(s[1] == 0.25f);
  index.forget(7);
  CHECK(score(index, 7, 10, 2) == std::vector<float>{0, 0});
}

TEST_CASE("controls refuse what they cannot work with", "[controls]") {
  CHECK_THROWS_AS(fm::oracle_indexer(0), fm::argument_error);
  fm::oracle_indexer oracle(4);
  const float mass = 1;
  CHECK_THROWS_AS(oracle.record(0, -1, fm::view<const float, 1>(&mass, 1)), fm::argument_error);
  CHECK_THROWS_AS(oracle.record(0, 1, fm::view<const float, 1>(nullptr, 1)), fm::argument_error);
  fm::recency_indexer recency;
  fm::random_indexer random(1);
  for (fm::indexer* index : {static_cast<fm::indexer*>(&recency), static_cast<fm::indexer*>(&random),
                             static_cast<fm::indexer*>(&oracle)}) {
    CAPTURE(index->taps().name);
    CHECK(index->taps().queries.empty());
    CHECK(index->taps().index_keys.empty());
    CHECK(index->taps().reads.lanes == 0);
    CHECK_FALSE(index->taps().log_odds);
    CHECK(index->workspace_bytes({}, 100, 100) == 0);
    fm::score_request r;
    float out[2] = {5, 5};
    const auto call = [&](fm::view<float, 1> scores) { return index->score(r, scores); };
    r.chunks = 2;
    CHECK(call(fm::view<float, 1>(out, 1)) == status::bad_shape);
    CHECK(call(fm::view<float, 1>(nullptr, 2)) == status::null_data);
    r.chunks = -1;
    CHECK(call(fm::view<float, 1>(out, 2)) == status::bad_shape);
    CHECK(out[0] == 5);
    CHECK(index->encode_index_keys(0, {}, {}, {}, fm::serial_threads()) == status::unsupported);
  }
}
