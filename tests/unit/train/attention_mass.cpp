// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <flashmemory/train/label/attention_mass.hpp>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/reference/labels.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace train = flashmemory::train;

namespace {

/// Random q and k, rounded to bf16 so that every storage holds them exactly.
struct problem {
  std::int64_t tokens, entries;
  int heads, kv_heads, dim, tokens_per_entry;
  std::vector<float> q, k;
  std::vector<std::int64_t> positions;

  problem(std::uint64_t seed, std::int64_t t, std::int64_t e, int h, int kv, int d, int tpe)
      : tokens(t), entries(e), heads(h), kv_heads(kv), dim(d), tokens_per_entry(tpe) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    q.resize(static_cast<std::size_t>(t * h * d));
    k.resize(static_cast<std::size_t>(e * kv * d));
    for (float& x : q) x = fm::round_to_bf16(3 * normal(random));
    for (float& x : k) x = fm::round_to_bf16(normal(random));
    for (std::int64_t i = 0; i < t; ++i)
      positions.push_back(std::uniform_int_distribution<std::int64_t>(0, (e + 1) * tpe - 2)(random));
  }

  fm::view<const std::int64_t, 1> where() const {
    return fm::view<const std::int64_t, 1>(positions.data(), tokens);
  }
  fm::view<const float, 3> queries() const { return fm::view<const float, 3>(q.data(), tokens, heads, dim); }
  fm::view<const float, 3> keys() const { return fm::view<const float, 3>(k.data(), entries, kv_heads, dim); }

  std::vector<double> masses(std::int64_t token, int head, double scale, double cap,
                             const float* sinks) const {
    std::vector<double> logits;
    for (std::int64_t e = 0; e < (positions[static_cast<std::size_t>(token)] + 1) / tokens_per_entry; ++e) {
      double dot = 0;
      for (int d = 0; d < dim; ++d)
        dot += double{q[static_cast<std::size_t>((token * heads + head) * dim + d)]} *
               double{k[static_cast<std::size_t>((e * kv_heads + head / (heads / kv_heads)) * dim + d)]};
      dot *= scale;
      logits.push_back(cap > 0 ? cap * std::tanh(dot / cap) : dot);
    }
    const double sink = sinks != nullptr ? double{sinks[head]} : 0;
    return reference::softmax(logits, sinks != nullptr ? &sink : nullptr);
  }
};

void compare(const problem& p, const train::attention_mass_options& o, const train::token_attention& items,
             std::int64_t token) {
  const double scale = o.softmax_scale > 0 ? double{o.softmax_scale} : 1 / std::sqrt(double(p.dim));
  std::size_t at = 0;
  for (int head = 0; head < p.heads; ++head) {
    const auto mass = p.masses(token, head, scale, double{o.logit_soft_cap}, o.sink_logits.data);
    std::vector<double> sorted = mass;
    std::sort(sorted.rbegin(), sorted.rend());
    double covered = 0;
    std::size_t kept = 0;
    for (; at < items.size() && items[at].head == head; ++at, ++kept) {
      const auto& item = items[at];
      CHECK(item.layer == 5);
      REQUIRE(item.entry < static_cast<std::int64_t>(mass.size()));
      CHECK(double{item.mass} ==
            Approx(mass[static_cast<std::size_t>(item.entry)]).epsilon(1e-4).margin(1e-7));
      CHECK(double{item.mass} == Approx(sorted[kept]).epsilon(1e-4).margin(1e-7));  // the heaviest, in order
      CHECK(covered < double{o.coverage});
      covered += double{item.mass};
    }
    // Nothing that should be kept is missing.
    const bool full = kept == static_cast<std::size_t>(o.max_entries) || covered >= double{o.coverage} - 1e-4;
    if (!full && kept < sorted.size()) CHECK(sorted[kept] < double{o.min_mass} * (1 + 1e-4) + 1e-30);
  }
  CHECK(at == items.size());
}

}  // namespace

TEST_CASE("attention mass is the softmax over all history, heaviest entries first", "[train][mass]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  const auto entries = GENERATE(std::int64_t{1}, std::int64_t{2}, std::int64_t{63}, std::int64_t{64},
                                std::int64_t{65}, std::int64_t{1031});
  const auto tokens = GENERATE(std::int64_t{1}, std::int64_t{5}, std::int64_t{33});
  const int kv_heads = GENERATE(1, 2);
  const int tokens_per_entry = GENERATE(1, 4);
  const int dim = GENERATE(1, 16, 20);
  CAPTURE(seed, entries, tokens, kv_heads, tokens_per_entry, dim);
  const problem p(seed, tokens, entries, 4, kv_heads, dim, tokens_per_entry);
  train::attention_mass_options o;
  o.max_entries = 40;
  o.min_mass = 1e-3f;
  std::vector<train::token_attention> out;
  attention_mass(p.where(), p.queries(), p.keys(), tokens_per_entry, 5, o, out);
  REQUIRE(out.size() == static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) compare(p, o, out[static_cast<std::size_t>(t)], t);

  SECTION("whatever the threads") {
    std::vector<train::token_attention> serial;
    o.threads = fm::serial_threads();
    attention_mass(p.where(), p.queries(), p.keys(), tokens_per_entry, 5, o, serial);
    for (std::size_t t = 0; t < out.size(); ++t) {
      REQUIRE(serial[t].size() == out[t].size());
      for (std::size_t i = 0; i < out[t].size(); ++i) CHECK(serial[t][i].mass == out[t][i].mass);
    }
  }
}

TEST_CASE("scale, soft cap, sinks and limits of attention mass", "[train][mass]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const problem p(seed, 9, 200, 4, 2, 32, 1);
  const float sinks[] = {0.5f, -3, 8, 30};
  train::attention_mass_options o;
  o.max_entries = 200;
  o.min_mass = 0;
  SECTION("nothing is left out") {}
  SECTION("scale") { o.softmax_scale = 0.01f; }
  SECTION("soft cap") { o.logit_soft_cap = 2; }
  SECTION("sink logits") { o.sink_logits = fm::view<const float, 1>(sinks, 4); }
  SECTION("few entries") { o.max_entries = 3; }
  SECTION("heavy entries") { o.min_mass = 0.05f; }
  SECTION("coverage") { o.coverage = 0.7f; }
  std::vector<train::token_attention> out;
  attention_mass(p.where(), p.queries(), p.keys(), 1, 5, o, out);
  for (std::int64_t t = 0; t < 9; ++t) compare(p, o, out[static_cast<std::size_t>(t)], t);
}

TEST_CASE("attention mass of a store's keys is that of the same keys in a tensor", "[train][mass]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  const fm::dtype type = GENERATE(fm::dtype::f32, fm::dtype::bf16);
  CAPTURE(seed, fm::to_string(type));
  const problem p(seed, 6, 150, 4, 2, 16, 1);
  fm::store_options options;
  options.geometry.layers = 6;
  options.geometry.kv_heads = 2;
  options.geometry.key_dim = options.geometry.value_dim = 16;
  options.geometry.type = type;
  options.geometry.entries_per_chunk = 16;
  options.fast_bytes = std::size_t{64} << 20;
  options.backing_bytes = std::size_t{64} << 20;
  fm::tiered_chunk_store store(options);
  fm::sequence_options sequence;
  sequence.max_tokens = 160;
  SECTION("resident as a whole") {
    const auto handle = store.open(sequence);
    const fm::batch_item item{handle, 0, 150};
    for (int layer = 0; layer < 6; ++layer)
      REQUIRE(store.append(fm::batch(&item, 1), layer, p.keys(), p.keys(), fm::stream_ref::host()) ==
              fm::status::ok);
    train::attention_mass_options o;
    std::vector<train::token_attention> a, b;
    attention_mass(store, handle, p.where(), p.queries(), 5, o, a);
    attention_mass(p.where(), p.queries(), p.keys(), 1, 5, o, b);
    REQUIRE(a.size() == b.size());
    for (std::size_t t = 0; t < a.size(); ++t) {
      REQUIRE(a[t].size() == b[t].size());
      for (std::size_t i = 0; i < a[t].size(); ++i) {
        CHECK(a[t][i].entry == b[t][i].entry);
        CHECK(a[t][i].mass == b[t][i].mass);
      }
    }
  }
  SECTION("refused if a chunk is not resident") {
    sequence.max_resident_chunks = 6;
    const auto handle = store.open(sequence);
    const fm::batch_item item{handle, 0, 150};
    for (int layer = 0; layer < 6; ++layer)
      REQUIRE(store.append(fm::batch(&item, 1), layer, p.keys(), p.keys(), fm::stream_ref::host()) ==
              fm::status::ok);
    const std::int64_t last = 149;
    const fm::view<const std::int64_t, 1> where(&last, 1);
    const fm::view<const float, 3> q(p.q.data(), 1, 4, 16);
    std::vector<train::token_attention> out;
    try {
      attention_mass(store, handle, where, q, 5, {}, out);
      FAIL("no error");
    } catch (const fm::error& e) {
      CHECK(e.code() == fm::status::not_resident);
    }
    CHECK(out.empty());
  }
}

TEST_CASE("attention mass from logits, and what is refused", "[train][mass]") {
  const float inf = std::numeric_limits<float>::infinity();
  const float logits[] = {0, 0, 0, 0, -inf, 2, -inf, 1};
  train::token_attention out;
  attention_mass(fm::view<const float, 2>(logits, 2, 4), 3, {}, out);
  REQUIRE(out.size() == 6);
  for (int i = 0; i < 4; ++i) {  // equal masses: lower entry first
    CHECK(out[static_cast<std::size_t>(i)].entry == i);
    CHECK(out[static_cast<std::size_t>(i)].mass == 0.25f);
  }
  CHECK(out[4].entry == 1);
  CHECK(out[4].head == 1);
  CHECK(double{out[4].mass} == Approx(1 / (1 + std::exp(-1.0))));

  const float bad[] = {0, std::numeric_limits<float>::quiet_NaN(), 0, inf};
  CHECK_THROWS_AS(attention_mass(fm::view<const float, 2>(bad, 1, 2), 0, {}, out), fm::error);
  CHECK_THROWS_AS(attention_mass(fm::view<const float, 2>(bad + 2, 1, 2), 0, {}, out), fm::error);
  CHECK(out.size() == 6);
  const float none[] = {-inf, -inf};
  attention_mass(fm::view<const float, 2>(none, 1, 2), 0, {}, out);
  attention_mass(fm::view<const float, 2>(none, 2, 0), 0, {}, out);
  CHECK(out.size() == 6);

  const problem p(1, 3, 10, 4, 2, 8, 1);
  std::vector<train::token_attention> tokens;
  const auto refused = [&](const problem& x, const train::attention_mass_options& o) {
    CHECK_THROWS_AS(attention_mass(x.where(), x.queries(), x.keys(), x.tokens_per_entry, 0, o, tokens),
                    fm::argument_error);
    CHECK(tokens.empty());
  };
  train::attention_mass_options o;
  o.max_entries = 0;
  refused(p, o);
  o = {};
  o.coverage = 0;
  refused(p, o);
  o = {};
  o.min_mass = -1;
  refused(p, o);
  o = {};
  o.sink_logits = fm::view<const float, 1>(logits, 3);
  refused(p, o);
  problem late = p;
  late.positions[1] = 10;
  refused(late, {});
  problem odd = p;
  odd.kv_heads = 3;
  odd.k.resize(10 * 3 * 8);
  refused(odd, {});
}
