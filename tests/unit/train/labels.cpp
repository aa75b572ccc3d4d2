// SPDX-License-Identifier: MIT
#include "tests/reference/labels.hpp"

#include <flashmemory/error.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/random_document.hpp"

namespace fm = flashmemory;
namespace train = flashmemory::train;

namespace {

/// Attention of one token at a time: {token, layer, head, entry, mass}.
struct paid {
  std::int64_t token;
  int layer, head;
  std::int64_t entry;
  float mass;
};

/// A document of `tokens` tokens that paid `items`, which are ordered.
train::document document_of(std::int64_t tokens, const std::vector<paid>& items) {
  train::document doc;
  doc.tokens = tokens;
  auto& a = doc.attention;
  for (const paid& p : items) {
    if (a.positions.empty() || a.positions.back() != p.token) {
      a.positions.push_back(p.token);
      a.offsets.push_back(a.offsets.back());
    }
    a.layer.push_back(static_cast<std::uint16_t>(p.layer));
    a.head.push_back(static_cast<std::uint16_t>(p.head));
    a.entry.push_back(static_cast<std::uint32_t>(p.entry));
    a.mass.push_back(p.mass);
    ++a.offsets.back();
  }
  return doc;
}

train::window_options windows(std::int64_t tau, int sink, int recent, int chunk) {
  train::window_options o;
  o.tau = tau;
  o.sink_chunks = sink;
  o.recent_chunks = recent;
  o.entries_per_chunk = chunk;
  o.layers = 2;
  o.heads = 2;
  return o;
}

train::label_rule mass_rule(float theta) {
  train::label_rule r;
  r.kind = train::label_kind::max_mass;
  r.min_mass = theta;
  return r;
}

}  // namespace

TEST_CASE("sink, recent, open and later chunks are neither positive nor negative", "[train][labels]") {
  // Chunks of 4 entries; at position 21 chunks 0..4 are complete, the fifth is open.
  const auto doc = document_of(40, {{22, 0, 0, 1, 0.9f},
                                    {23, 0, 0, 6, 0.9f},
                                    {24, 0, 0, 13, 0.9f},
                                    {25, 0, 0, 17, 0.9f},
                                    {26, 0, 0, 21, 0.9f},
                                    {27, 0, 0, 26, 0.9f}});
  const auto labels = label_window(doc, 21, mass_rule(0.5f), windows(64, 1, 2, 4));
  CHECK(labels.complete_chunks == 5);
  CHECK(labels.first_candidate == 1);
  CHECK(labels.end_candidate == 3);
  CHECK(labels.candidates() == 2);
  CHECK(labels.tokens_seen == 6);
  REQUIRE(labels.positives.size() == 1);
  CHECK(labels.positives[0].chunk == 1);
  CHECK(labels.positives[0].weight == 0.9f);
}

TEST_CASE("a window is the tokens after the query, tau of them", "[train][labels]") {
  const auto doc = document_of(
      100, {{50, 0, 0, 8, 0.9f}, {51, 0, 0, 12, 0.9f}, {54, 0, 0, 16, 0.9f}, {55, 0, 0, 20, 0.9f}});
  const auto chunks = [&](std::int64_t position, std::int64_t tau) {
    std::vector<int> out;
    for (const auto& p : label_window(doc, position, mass_rule(0.5f), windows(tau, 0, 0, 4)).positives)
      out.push_back(p.chunk);
    return out;
  };
  CHECK(chunks(50, 4) == std::vector<int>{3, 4});
  CHECK(chunks(49, 1) == std::vector<int>{2});
  CHECK(chunks(50, std::numeric_limits<std::int64_t>::max()) == std::vector<int>{3, 4, 5});
  CHECK(chunks(55, 64).empty());
  CHECK(label_window(doc, 99, mass_rule(0.5f), windows(4, 0, 0, 4)).tokens_seen == 0);
}

TEST_CASE("a window in which nothing old is needed is a sample without positives", "[train][labels]") {
  const auto doc = document_of(100, {{50, 0, 0, 49, 0.9f}, {51, 0, 0, 5, 0.01f}});
  const auto labels = label_window(doc, 49, mass_rule(0.5f), windows(64, 1, 2, 4));
  CHECK(labels.tokens_seen == 2);
  CHECK(labels.positives.empty());
  CHECK(labels.candidates() == 12 - 3);
}

TEST_CASE("mass of one head on one chunk is summed over its entries, over heads it is not",
          "[train][labels]") {
  const auto doc = document_of(100, {{50, 0, 0, 8, 0.3f},
                                     {50, 0, 0, 9, 0.3f},
                                     {50, 0, 1, 12, 0.3f},
                                     {50, 1, 1, 12, 0.3f},
                                     {51, 0, 1, 12, 0.3f}});
  const auto labels = label_window(doc, 49, mass_rule(0.5f), windows(64, 0, 0, 4));
  REQUIRE(labels.positives.size() == 1);
  CHECK(labels.positives[0].chunk == 2);
  CHECK(labels.positives[0].weight == Approx(0.6f));
  const auto mass = mass_of_window(doc, 49, windows(64, 0, 0, 4));
  CHECK(mass.max[2] == Approx(0.6f));
  CHECK(mass.max[3] == Approx(0.3f));
  CHECK(mass.sum[3] == Approx(0.9));
}

TEST_CASE("the nucleus keeps at least one entry, and the one that crosses p", "[train][labels]") {
  train::label_rule r;
  r.kind = train::label_kind::nucleus_votes;
  r.nucleus = 0.5f;
  r.votes = 2;
  // Averages over 2 heads. Layer 0: entry 8 has 0.45, entry 12 0.2, entry 16 0.1. Layer 1: entry 12 has 0.9.
  const auto doc = document_of(100, {{50, 0, 0, 8, 0.9f},
                                     {50, 0, 1, 12, 0.4f},
                                     {50, 0, 1, 16, 0.2f},
                                     {50, 1, 0, 12, 0.9f},
                                     {50, 1, 1, 12, 0.9f}});
  auto labels = label_window(doc, 49, r, windows(64, 0, 0, 4));
  REQUIRE(labels.positives.size() == 1);  // layer 0 keeps 8 and 12, layer 1 keeps 12
  CHECK(labels.positives[0].chunk == 3);
  CHECK(labels.positives[0].weight == 1.0f);
  r.votes = 1;
  labels = label_window(doc, 49, r, windows(64, 0, 0, 4));
  REQUIRE(labels.positives.size() == 2);
  CHECK(labels.positives[0].chunk == 2);
  CHECK(labels.positives[0].weight == 0.5f);
}

TEST_CASE("labels are those of the plain reference", "[train][labels]") {
  const std::uint64_t seed = GENERATE(flashmemory_test::fresh_seeds(6));
  const int tokens_per_entry = GENERATE(1, 4);
  const int only_layer = GENERATE(-1, 1);
  CAPTURE(seed, tokens_per_entry, only_layer);
  const auto g = support::small_geometry(tokens_per_entry);
  const auto doc = support::random_document(g, seed, 150);
  std::mt19937_64 random(seed);
  for (std::int64_t position = 0; position < doc.tokens;
       position += 1 + static_cast<std::int64_t>(random() % 9)) {
    auto options = train::window_options_for(g);
    options.tau = 1 + static_cast<std::int64_t>(random() % 70);
    options.sink_chunks = static_cast<int>(random() % 3);
    options.recent_chunks = static_cast<int>(random() % 3);
    options.entries_per_chunk = 1 + static_cast<int>(random() % 9);
    train::label_rule rule;
    rule.layer = only_layer;
    rule.min_mass = static_cast<float>(1 + random() % 60) / 100;
    rule.nucleus = static_cast<float>(1 + random() % 99) / 100;
    rule.votes = 1 + static_cast<int>(random() % 3);
    CAPTURE(position, options.tau, options.entries_per_chunk, rule.min_mass, rule.nucleus, rule.votes);

    const std::int64_t complete =
        (position + 1) / (options.entries_per_chunk * std::int64_t{tokens_per_entry});
    const auto expected = [&](const auto& needed) {
      std::vector<std::int64_t> out;
      for (std::int64_t c = options.sink_chunks; c < complete - options.recent_chunks; ++c)
        if (needed(c)) out.push_back(c);
      return out;
    };
    const auto made = [&](train::label_kind kind) {
      rule.kind = kind;
      std::vector<std::int64_t> out;
      for (const auto& p : label_window(doc, position, rule, options).positives) {
        CHECK((p.weight > 0 && p.weight <= 1));
        out.push_back(p.chunk);
      }
      return out;
    };
    auto votes = reference::nucleus_votes(doc, position, options.tau, double{rule.nucleus}, g.layers, g.heads,
                                          options.entries_per_chunk, only_layer);
    CHECK(made(train::label_kind::nucleus_votes) ==
          expected([&](std::int64_t c) { return votes[c] >= (only_layer >= 0 ? 1 : rule.votes); }));
    auto mass = reference::max_mass(doc, position, options.tau, options.entries_per_chunk, only_layer);
    CHECK(made(train::label_kind::max_mass) ==
          expected([&](std::int64_t c) { return static_cast<float>(mass[c]) >= rule.min_mass; }));
    auto needed = reference::needed(doc, position, options.tau, options.entries_per_chunk);
    CHECK(made(train::label_kind::needed_set) == expected([&](std::int64_t c) { return needed[c]; }));
    const auto window = mass_of_window(doc, position, options, only_layer);
    REQUIRE(window.complete_chunks == complete);
    for (std::int64_t c = 0; c < complete; ++c)
      CHECK(double{window.max[static_cast<std::size_t>(c)]} == Approx(mass[c]).margin(1e-6));
  }
}

TEST_CASE("rules and windows that cannot work are refused", "[train][labels]") {
  const auto doc = document_of(10, {});
  const auto ok = windows(4, 1, 2, 4);
  CHECK_THROWS_AS(label_window(doc, 10, mass_rule(0.5f), ok), fm::argument_error);
  CHECK_THROWS_AS(label_window(doc, -1, mass_rule(0.5f), ok), fm::argument_error);
  CHECK_THROWS_WITH(label_window(doc, 1, mass_rule(0), ok), Catch::Contains("min_mass"));
  CHECK_THROWS_AS(label_window(doc, 1, mass_rule(std::numeric_limits<float>::quiet_NaN()), ok),
                  fm::argument_error);
  train::label_rule r;
  r.kind = train::label_kind::nucleus_votes;
  r.nucleus = 1.5f;
  CHECK_THROWS_WITH(label_window(doc, 1, r, ok), Catch::Contains("nucleus"));
  r.nucleus = 0.5f;
  r.votes = 0;
  CHECK_THROWS_WITH(label_window(doc, 1, r, ok), Catch::Contains("votes"));
  r.kind = static_cast<train::label_kind>(7);
  CHECK_THROWS_WITH(label_window(doc, 1, r, ok), Catch::Contains("kind"));
  for (const char* field : {"tau", "sink_chunks", "recent_chunks", "entries_per_chunk", "tokens_per_entry"}) {
    auto bad = ok;
    const std::string name = field;
    if (name == "tau") bad.tau = 0;
    if (name == "sink_chunks") bad.sink_chunks = -1;
    if (name == "recent_chunks") bad.recent_chunks = -1;
    if (name == "entries_per_chunk") bad.entries_per_chunk = 0;
    if (name == "tokens_per_entry") bad.tokens_per_entry = 0;
    CHECK_THROWS_WITH(label_window(doc, 1, mass_rule(0.5f), bad), Catch::Contains(field));
  }
}
