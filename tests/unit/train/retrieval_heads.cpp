// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>
#include <flashmemory/train/label/retrieval_heads.hpp>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/planted_documents.hpp"

namespace fm = flashmemory;
namespace ft = flashmemory::train;

namespace {

/// Means by the definition alone: for every token, head and chunk a sum over all items.
std::vector<double> naive(const std::vector<ft::document>& documents, const ft::window_options& o,
                          const ft::recording_geometry& g) {
  std::vector<double> sums(std::size_t(g.layers * g.heads));
  double tokens = 0;
  for (const ft::document& d : documents) {
    if (d.split != ft::dataset_split::train) continue;
    for (std::int64_t t = 0; t < d.attention.tokens(); ++t) {
      ++tokens;
      const std::int64_t complete = (d.attention.positions[std::size_t(t)] + 1) / o.entries_per_chunk;
      for (int l = 0; l < g.layers; ++l)
        for (int h = 0; h < g.heads; ++h) {
          double most = 0;
          for (std::int64_t c = o.sink_chunks; c < complete - o.recent_chunks; ++c) {
            double sum = 0;
            for (std::int64_t i = d.attention.offsets[std::size_t(t)];
                 i < d.attention.offsets[std::size_t(t) + 1]; ++i) {
              const auto k = std::size_t(i);
              if (d.attention.layer[k] == l && d.attention.head[k] == h &&
                  std::int64_t(d.attention.entry[k]) / o.entries_per_chunk == c)
                sum += double(d.attention.mass[k]);
            }
            most = std::max(most, sum);
          }
          sums[std::size_t(l * g.heads + h)] += most;
        }
    }
  }
  for (double& s : sums) s /= tokens;
  return sums;
}

/// Attention of planted documents replaced by random items of all heads, in their order.
std::vector<ft::document> scattered(std::uint32_t seed) {
  auto documents = planted::many(seed, 3, 1, 12);
  std::mt19937 random(seed);
  for (ft::document& d : documents) {
    ft::attention_table& a = d.attention;
    a.offsets = {0};
    a.layer.clear();
    a.head.clear();
    a.entry.clear();
    a.mass.clear();
    for (const std::int64_t position : a.positions) {
      for (std::uint16_t l = 0; l < 2; ++l)
        for (std::uint16_t h = 0; h < 2; ++h)
          for (int i = int(random() % 5); i > 0; --i) {  // falling by mass
            a.layer.push_back(l);
            a.head.push_back(h);
            a.entry.push_back(
                std::uint32_t((random() % std::uint64_t(position / 5 + 1)) * 5 + std::uint64_t(i) % 5) %
                std::uint32_t(position + 1));
            a.mass.push_back(0.04f * float(i) + 0.001f * float(random() % 30));
          }
      a.offsets.push_back(std::int64_t(a.entry.size()));
    }
  }
  return documents;
}

}  // namespace

TEST_CASE("heads are ranked by the mass of the chunk that they look at", "[train]") {
  const std::uint32_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const auto documents = scattered(seed);
  const ft::memory_source source(planted::geometry(), documents);
  ft::window_options o = planted::windows();
  for (const std::int32_t recent : {0, 2, 6}) {
    CAPTURE(recent);
    o.recent_chunks = recent;
    const auto wanted = naive(documents, o, planted::geometry());
    const auto ranked = ft::rank_retrieval_heads(source, o);
    REQUIRE(ranked.size() == 4);
    for (std::size_t i = 0; i < ranked.size(); ++i) {
      CHECK(ranked[i].mass == Approx(wanted[std::size_t(ranked[i].head.layer * 2 + ranked[i].head.head)]));
      if (i > 0) CHECK(ranked[i - 1].mass >= ranked[i].mass);
    }
  }
}

TEST_CASE("the head that looks for planted codes is found, and its labels are its own", "[train]") {
  const std::uint32_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  auto documents = planted::many(seed, 4, 0, 24);
  const ft::memory_source source(planted::geometry(), documents);
  const auto ranked = ft::rank_retrieval_heads(source, planted::windows());
  CHECK(ranked.front().head.layer == 1);
  CHECK(ranked.front().head.head == 0);
  CHECK(ranked[1].mass == 0);

  ft::label_rule all, own, others;
  own.heads = {ranked.front().head};
  others.heads = {ranked[1].head, ranked[2].head};
  std::size_t positives = 0;
  for (const std::int64_t position : documents[0].positions) {
    const auto a = ft::label_window(documents[0], position, all, planted::windows());
    const auto b = ft::label_window(documents[0], position, own, planted::windows());
    REQUIRE(a.positives.size() == b.positives.size());
    positives += b.positives.size();
    CHECK(ft::label_window(documents[0], position, others, planted::windows()).positives.empty());
  }
  CHECK(positives > 0);
}

TEST_CASE("without attention there are no heads to rank, and heads below 0 count nowhere", "[train]") {
  auto documents = planted::many(7, 1, 0, 12);
  documents[0].attention = {};
  const ft::memory_source source(planted::geometry(), documents);
  CHECK_THROWS_AS(ft::rank_retrieval_heads(source, planted::windows()), fm::argument_error);
  ft::label_rule rule;
  rule.heads = {{0, -1}};
  CHECK_THROWS_AS(ft::validate(rule), fm::argument_error);
}
