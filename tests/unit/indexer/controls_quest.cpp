// SPDX-License-Identifier: MIT
#include <cmath>
#include <flashmemory/indexer/controls.hpp>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

constexpr std::int32_t query_heads = 4;

fm::kv_geometry geometry() {
  fm::kv_geometry g = toy::geometry(0);
  g.kv_heads = 2;
  return g;
}

/// K of the toy engine: [layer][head][dim] of one token.
float key_value(const toy::sequence& s, std::int32_t layer, std::int64_t token, std::int64_t head,
                std::int64_t d) {
  return toy::number(s.tag_at(token), std::uint64_t(token), std::uint64_t(layer) + 200,
                     std::uint64_t(head * 16 + d));
}

/// Bounds and the softmax that they imply, in double precision.
std::vector<double> expected(const toy::sequence& s, const std::vector<std::vector<float>>& q,
                             std::int64_t chunks, double scale) {
  const fm::kv_geometry g = geometry();
  std::vector<double> best(std::size_t(chunks), 0.0);
  for (std::int32_t layer = 0; layer < g.layers; ++layer)
    for (std::int64_t h = 0; h < query_heads; ++h) {
      std::vector<double> weight;
      double total = 0;
      for (std::int64_t c = 0; c < chunks; ++c) {
        double bound = 0;
        for (std::int64_t d = 0; d < 16; ++d) {
          double low = 1e9, high = -1e9;
          for (std::int64_t t = c * 8; t < c * 8 + 8; ++t) {
            low = std::min(low, double(key_value(s, layer, t, h / 2, d)));
            high = std::max(high, double(key_value(s, layer, t, h / 2, d)));
          }
          const double x = q[std::size_t(layer)][std::size_t(h * 16 + d)];
          bound += std::max(x * low, x * high);
        }
        weight.push_back(std::exp(bound * scale));
        total += weight.back();
      }
      for (std::size_t c = 0; c < best.size(); ++c) best[c] = std::max(best[c], weight[c] / total);
    }
  return best;
}

struct bench {
  fm::kv_geometry g = geometry();
  fm::tiered_chunk_store store{toy::store_options(g)};
  toy::failing_store front{store};
  fm::quest_indexer index;
  fm::selection_policy policy;
  fm::recency_indexer unused;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;
  std::vector<std::byte> scratch;

  explicit bench(float scale = 0, std::int32_t sequences = 2) : index(g, query_heads, sequences, 100, scale) {
    policy.mode = fm::selection_mode::everything;
    select = std::make_unique<fm::selector>(store, unused, policy);
    engine = std::make_unique<toy::engine>(store, *select);
    scratch.resize(index.workspace_bytes(g, 100, 0));
  }
  toy::sequence open(std::uint64_t tag) {
    return engine->open(fm::sequence_options_for(policy, g, 800), tag);
  }
  status score(const toy::sequence& s, const std::vector<std::vector<float>>& q, std::int64_t chunks,
               std::vector<float>* out) {
    std::vector<const float*> rows;
    for (const auto& r : q) rows.push_back(r.data());
    fm::score_request r;
    r.reader = &front;
    r.sequence = s.handle;
    r.position = s.tokens - 1;
    r.chunks = chunks;
    r.queries = rows.data();
    out->assign(std::size_t(chunks), -1.0f);
    r.scratch = {scratch.data(), scratch.size()};
    return index.score(r, fm::view<float, 1>(out->data(), chunks));
  }
  void check(const toy::sequence& s, double scale = 0.25) {
    std::vector<std::vector<float>> q(2);
    for (auto& layer : q)
      for (int i = 0; i < query_heads * 16; ++i)
        layer.push_back(4 * toy::number(s.tag, std::uint64_t(s.tokens), std::uint64_t(&layer - q.data()),
                                        std::uint64_t(i)));
    std::vector<float> got;
    REQUIRE(score(s, q, s.tokens / 8, &got) == status::ok);
    const auto want = expected(s, q, s.tokens / 8, scale);
    for (std::size_t c = 0; c < got.size(); ++c) {
      CAPTURE(c, s.tokens);
      REQUIRE(double(got[c]) == Approx(want[c]).epsilon(1e-5));
    }
  }
};

}  // namespace

TEST_CASE("quest scores the softmax over chunks of upper bounds, largest over layers and heads",
          "[controls]") {
  bench b;
  auto s = b.open(3), t = b.open(4);
  REQUIRE(b.engine->pass({&s, &t}, {8, 100}) == status::ok);
  b.check(s);
  b.check(t);
  for (int i = 0; i < 10; ++i) {
    REQUIRE(b.engine->pass({&s, &t}, {20, 13}) == status::ok);
    b.check(s);
    b.check(t);
  }
  bench scaled(0.5f);
  auto u = scaled.open(5);
  REQUIRE(scaled.engine->pass({&u}, {64}) == status::ok);
  scaled.check(u, 0.5);
}

TEST_CASE("a chunk that cannot be read costs quest that chunk's score, until it can be read", "[controls]") {
  const status why = GENERATE(status::io_error, status::corrupt_chunk, status::stale_slot);
  bench b;
  auto s = b.open(3);
  REQUIRE(b.engine->pass({&s}, {100}) == status::ok);
  const std::vector<std::vector<float>> q(2, std::vector<float>(query_heads * 16, 0.5f));
  std::vector<float> scores;
  b.front.fail_reads[4] = why;
  if (why == status::stale_slot) {  // nothing that a medium does
    CHECK(b.score(s, q, 12, &scores) == why);
    return;
  }
  REQUIRE(b.score(s, q, 12, &scores) == status::ok);
  for (std::size_t c = 0; c < 12; ++c) CHECK(std::isnan(scores[c]) == (c == 4));
  b.front.fail_reads.clear();
  REQUIRE(b.engine->pass({&s}, {4}) == status::ok);
  REQUIRE(b.score(s, q, 13, &scores) == status::ok);
  CHECK(std::isnan(scores[4]) == (why == status::corrupt_chunk));
  if (why == status::io_error) b.check(s);
}

TEST_CASE("quest never uses the summaries of tokens that were rolled back or of a closed sequence",
          "[controls]") {
  bench b(0, 1);
  auto s = b.open(3);
  REQUIRE(b.engine->pass({&s}, {160}) == status::ok);
  b.check(s);
  const int back = GENERATE(159, 153, 150, 100, 0);
  CAPTURE(back);
  REQUIRE(b.store.truncate(s.handle, back) == status::ok);
  s.branches.push_back({back, 77});
  s.tokens = back;
  if (back <= 100) b.check(s);  // a scoring in between tells about longer rollbacks
  REQUIRE(b.engine->pass({&s}, {200 - back}) == status::ok);
  b.check(s);
  REQUIRE(b.store.close(s.handle) == status::ok);
  auto t = b.open(9);
  REQUIRE(t.handle.index == s.handle.index);
  REQUIRE(b.engine->pass({&t}, {200}) == status::ok);
  b.check(t);
  CHECK(b.store.counters().faults == 0);
}

TEST_CASE("quest shows NaN in K as NaN scores of that chunk alone", "[controls]") {
  bench b;
  const auto h = b.store.open(fm::sequence_options_for(b.policy, b.g, 800));
  toy::sequence s;
  s.handle = h;
  s.tokens = 40;
  std::vector<float> k(40 * 32, 0.5f);
  k[17 * 32 + 3] = std::numeric_limits<float>::quiet_NaN();
  const fm::batch_item item{h, 0, 40};
  for (int layer = 0; layer < 2; ++layer) {
    const fm::view<const float, 3> rows(k.data(), 40, 2, 16);
    REQUIRE(b.store.append(fm::batch(&item, 1), layer, rows, rows, toy::host) == status::ok);
  }
  std::vector<float> got;
  REQUIRE(b.score(s, {std::vector<float>(64, 1.0f), std::vector<float>(64, 1.0f)}, 5, &got) == status::ok);
  for (int c = 0; c < 5; ++c) CHECK(std::isnan(got[std::size_t(c)]) == (c == 2));
}

TEST_CASE("quest refuses what it cannot score", "[controls]") {
  const fm::kv_geometry g = geometry();
  CHECK_THROWS_AS(fm::quest_indexer(g, 3, 1, 10), fm::argument_error);
  CHECK_THROWS_AS(fm::quest_indexer(g, 0, 1, 10), fm::argument_error);
  CHECK_THROWS_AS(fm::quest_indexer(g, 4, 0, 10), fm::argument_error);
  CHECK_THROWS_AS(fm::quest_indexer(g, 4, 1, 0), fm::argument_error);
  CHECK_THROWS_AS(fm::quest_indexer(g, 4, 1, 10, -1.0f), fm::argument_error);
  CHECK_THROWS_AS(fm::quest_indexer(g, 4, 1, 10, std::numeric_limits<float>::quiet_NaN()),
                  fm::argument_error);
  CHECK_THROWS_AS(fm::quest_indexer(fm::kv_geometry{}, 4, 1, 10), fm::argument_error);
  CHECK_THROWS_AS(fm::quest_indexer(g, 4, 1 << 30, std::int64_t{1} << 50), fm::admission_error);

  bench b(0, 1);
  auto s = b.open(3), t = b.open(4);
  REQUIRE(b.engine->pass({&s, &t}, {50, 50}) == status::ok);
  const std::vector<std::vector<float>> q(2, std::vector<float>(64, 1.0f));
  std::vector<float> got;
  CHECK(b.index.taps().queries.size() == 2);
  CHECK(b.index.taps().queries[1].kind == fm::tap_kind::queries);
  CHECK(b.index.taps().queries[1].width == 64);
  CHECK(b.score(s, q, 0, &got) == status::ok);
  CHECK(b.score(s, q, 7, &got) == status::out_of_range);
  CHECK(b.score(s, q, 101, &got) == status::out_of_range);
  REQUIRE(b.score(s, q, 6, &got) == status::ok);
  CHECK(b.score(t, q, 6, &got) == status::budget_exceeded);
  REQUIRE(b.store.close(s.handle) == status::ok);
  CHECK(b.score(s, q, 6, &got) == status::stale_sequence);
  CHECK(b.score(t, q, 6, &got) == status::ok);
  b.scratch.resize(16);
  CHECK(b.score(t, q, 6, &got) == status::workspace_small);
}
