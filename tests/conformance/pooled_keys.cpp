// SPDX-License-Identifier: MIT
// Pooled keys through a selector of every backend: what is stored, what is scored, what is chosen.
#include "tests/reference/pooled_keys.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <random>

#include "tests/catch.hpp"
#include "tests/conformance/backend.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

constexpr std::int32_t query_heads = 4, kv_heads = 2, key_dim = 64;

struct shape {
  std::int32_t entries, tokens_per_key;
  fm::index_key_type type;
  std::int32_t dim;  ///< not key_dim: projections
};

/// A model of two layers at random, one store and selector, and the same K and queries on the host.
class pooled_engine {
 public:
  struct sequence {
    fm::sequence_handle handle;
    std::int64_t tokens = 0;
    std::vector<float> k[2], q[2];  ///< [tokens, heads, key_dim]
  };

  pooled_engine(const conformance_backend& backend, const shape& s, std::uint32_t seed, float hold = 0)
      : backend_(backend), random_(seed) {
    fm::store_options options;
    auto& g = options.geometry;
    g.layers = 2;
    g.kv_heads = kv_heads;
    g.key_dim = key_dim;
    g.value_dim = 16;
    g.type = fm::dtype::f32;
    g.entries_per_chunk = s.entries;
    config = fm::pooled_keys_of(g, query_heads, {0, 1});
    config.dim = s.dim;
    config.tokens_per_key = s.tokens_per_key;
    config.type = s.type;
    config.query_tokens = 3;
    config.uncounted_sink_chunks = 1;
    config.lanes[1].query_heads = {3};
    if (s.dim != key_dim)
      for (auto& lane : config.lanes) {
        lane.key_projection = noise(std::int64_t{s.dim} * key_dim, 1 / std::sqrt(float(key_dim)));
        if (lane.layer == 1)
          lane.query_projection = noise(std::int64_t{s.dim} * key_dim, 1 / std::sqrt(float(key_dim)));
      }
    index = std::make_unique<fm::pooled_keys_indexer>(config);
    g.index_keys = index->taps().reads;
    options.fast_bytes = options.backing_bytes = std::size_t{64} << 20;
    options.max_sequences = 8;
    store = backend.make_store(options);
    policy.interval = 1;
    policy.budget_fraction = 0.3;
    policy.hold = hold;
    fm::selector_options so;
    so.max_sequences = 8;
    so.stagger = false;
    select = backend.make_selector(*store, *index, policy, so);
  }

  sequence open(std::int64_t max_tokens) {
    sequence s;
    s.handle = store->open(fm::sequence_options_for(policy, store->geometry(), max_tokens));
    select->attach(s.handle);
    return s;
  }

  void forward(const std::vector<sequence*>& batch, const std::vector<std::int32_t>& counts) {
    std::vector<fm::batch_item> items;
    for (std::size_t i = 0; i < batch.size(); ++i)
      items.push_back({batch[i]->handle, batch[i]->tokens, counts[i]});
    const fm::batch all(items.data(), items.size());
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      std::vector<float> k, q, v;
      for (std::size_t i = 0; i < batch.size(); ++i) {
        const auto more_k = noise(std::int64_t{counts[i]} * kv_heads * key_dim, 1);
        const auto more_q = noise(std::int64_t{counts[i]} * query_heads * key_dim, 2);
        batch[i]->k[layer].insert(batch[i]->k[layer].end(), more_k.begin(), more_k.end());
        batch[i]->q[layer].insert(batch[i]->q[layer].end(), more_q.begin(), more_q.end());
        k.insert(k.end(), more_k.begin(), more_k.end());
        q.insert(q.end(), more_q.begin(), more_q.end());
      }
      if (poison != 0) k[5] = poison;
      v = noise(std::int64_t(k.size()) / key_dim * 16, 1);
      REQUIRE(backend_.observe_keys(*select, all, layer, k) == status::ok);
      REQUIRE(backend_.observe_queries(*select, all, layer, q) == status::ok);
      REQUIRE(backend_.append(*store, all, layer, k, v) == status::ok);
    }
    for (std::size_t i = 0; i < batch.size(); ++i) batch[i]->tokens += counts[i];
    REQUIRE(fm::select_chunks(*select, all, backend_.stream()) == status::ok);
  }

  void truncate(sequence& s, std::int64_t tokens) {
    REQUIRE(store->truncate(s.handle, tokens) == status::ok);
    s.tokens = tokens;
    for (int layer = 0; layer < 2; ++layer) {
      s.k[layer].resize(std::size_t(tokens * kv_heads * key_dim));
      s.q[layer].resize(std::size_t(tokens * query_heads * key_dim));
    }
  }

  /// The rows of a lane's keys, whatever the layout.
  std::vector<std::byte> stored(const sequence& s, std::int32_t lane) const {
    const auto& g = store->geometry();
    const auto pages = backend_.index_keys(*store, s.handle, lane);
    const std::int64_t count = s.tokens / g.index_keys.tokens_per_key, page = g.index_keys_per_chunk();
    const auto bytes = std::size_t(g.index_keys.bytes());
    std::vector<std::byte> rows(std::size_t(count) * bytes);
    if (g.index_keys.layout == fm::index_key_layout::interleaved) {
      std::copy_n(pages.begin(), rows.size(), rows.begin());
      return rows;
    }
    for (std::int64_t first = 0; first < count; first += page)
      fm::repack_keys(pages.data() + std::size_t(first) * bytes, rows.data() + std::size_t(first) * bytes,
                      std::min(page, count - first), page, g.index_keys.bytes(), false,
                      g.index_keys.scale_bytes());
    return rows;
  }

  std::vector<std::byte> expected(const sequence& s, std::int32_t lane) const {
    const auto& g = store->geometry();
    const auto& k = s.k[config.lanes[std::size_t(lane)].layer];
    const std::int64_t count = s.tokens / g.index_keys.tokens_per_key;
    std::vector<std::byte> rows(std::size_t(count * g.index_keys.bytes()));
    REQUIRE(index->encode_index_keys(
                lane,
                fm::view<const float, 2>(k.data(), count * g.index_keys.tokens_per_key, kv_heads * key_dim),
                fm::view<std::byte, 2>(rows.data(), count, g.index_keys.bytes()), {},
                fm::serial_threads()) == status::ok);
    return rows;
  }

  /// The last scores are those of `s`, by the reference over the keys that are stored.
  void check_scores(const sequence& s) const {
    const auto& g = store->geometry();
    const auto bytes = std::size_t(g.index_keys.bytes());
    const std::int64_t chunks = s.tokens / g.tokens_per_chunk();
    if (chunks == 0) return;
    std::vector<std::vector<std::vector<double>>> keys;
    std::vector<std::vector<float>> newest(2);
    std::vector<const float*> queries;
    for (int layer = 0; layer < 2; ++layer)
      for (std::int64_t t = 0; t < config.query_tokens; ++t) {
        const std::int64_t token = std::max<std::int64_t>(0, s.tokens - config.query_tokens + t);
        const auto from = s.q[layer].begin() + token * query_heads * key_dim;
        newest[std::size_t(layer)].insert(newest[std::size_t(layer)].end(), from,
                                          from + query_heads * key_dim);
      }
    for (std::int32_t lane = 0; lane < g.index_keys.lanes; ++lane) {
      keys.emplace_back();
      const auto rows = stored(s, lane);
      for (std::size_t at = 0; at < rows.size(); at += bytes)
        keys.back().push_back(fm::reference::index_key_values(g.index_keys, rows.data() + at));
      queries.push_back(newest[std::size_t(config.lanes[std::size_t(lane)].layer)].data());
    }
    const auto needs = fm::reference::pooled_needs(index->config(), queries, keys, std::size_t(chunks),
                                                   std::size_t(g.index_keys_per_chunk()));
    const auto scores = select->last_scores();
    REQUIRE(scores.shape[0] == chunks);
    for (std::int64_t c = 0; c < chunks; ++c) {
      const double need = needs[std::size_t(c)];
      CAPTURE(c, chunks, need);
      if (need > 1e-10 && need < 1 - 1e-5)
        REQUIRE(double(scores(c)) == Approx(std::log(need) - std::log1p(-need)).margin(3e-3));
      else
        REQUIRE((need < 0.5 ? scores(c) < -20 : scores(c) > 10));
    }
  }

  std::vector<float> noise(std::int64_t count, float scale) {
    std::normal_distribution<float> normal;
    std::vector<float> values(std::size_t(count), 0.0f);
    for (float& x : values) x = scale * normal(random_);
    return values;
  }
  std::mt19937& random() { return random_; }

  fm::pooled_keys_config config;
  std::unique_ptr<fm::pooled_keys_indexer> index;
  std::unique_ptr<fm::chunk_store> store;
  fm::selection_policy policy;
  std::unique_ptr<fm::selector> select;
  float poison = 0;  ///< an element of the first token's K instead of its own, if not 0

 private:
  const conformance_backend& backend_;
  std::mt19937 random_;
};

constexpr shape shapes[] = {
    {8, 4, fm::index_key_type::int8, key_dim},  {64, 4, fm::index_key_type::mxfp4, key_dim},
    {12, 4, fm::index_key_type::e4m3, 20},      {80, 1, fm::index_key_type::f16, key_dim},
    {16, 8, fm::index_key_type::bf16, key_dim}, {192, 2, fm::index_key_type::mxfp4, 32}};

template <class F>
void on_every_backend(const F& test) {
  for (const auto& backend : conformance_backends()) {
    const auto seed = flashmemory_test::fresh_seed();
    CAPTURE(backend->name(), seed);
    fm::store_options o;
    o.geometry.layers = o.geometry.kv_heads = o.geometry.key_dim = o.geometry.value_dim = 1;
    o.fast_bytes = o.backing_bytes = std::size_t{1} << 20;
    if (!backend->make_store(o)) {
      WARN("skipped: " << backend->name());
      continue;
    }
    test(*backend, seed);
  }
}

}  // namespace

TEST_CASE("pooled keys without a projection have the same bytes on every backend, whatever the pieces",
          "[conformance][pooled_keys]") {
  const auto s = GENERATE(from_range(std::begin(shapes), std::end(shapes)));
  CAPTURE(int(s.type), s.entries);
  if (s.dim != key_dim) return;
  on_every_backend([&](const conformance_backend& backend, std::uint32_t seed) {
    pooled_engine engine(backend, s, seed);
    auto a = engine.open(900), b = engine.open(900);
    engine.forward({&a, &b}, {157, 3});
    for (int step = 0; step < 30; ++step) {
      engine.forward({&b, &a}, {1 + std::int32_t(engine.random()() % 5), 1});
      if (step % 7 == 6) engine.truncate(a, a.tokens - std::int64_t(engine.random()() % 9));
    }
    engine.forward({&b}, {200});
    for (std::int32_t lane = 0; lane < 4; ++lane) {
      CAPTURE(lane);
      REQUIRE(engine.stored(a, lane) == engine.expected(a, lane));
      REQUIRE(engine.stored(b, lane) == engine.expected(b, lane));
    }
    REQUIRE(engine.select->counters().nan_keys == 0);
  });
}

TEST_CASE("pooled keys score as the double-precision reference does, several sequences at a time",
          "[conformance][pooled_keys]") {
  const auto s = GENERATE(from_range(std::begin(shapes), std::end(shapes)));
  CAPTURE(int(s.type), s.entries);
  on_every_backend([&](const conformance_backend& backend, std::uint32_t seed) {
    pooled_engine engine(backend, s, seed);
    auto a = engine.open(1500), b = engine.open(1500), c = engine.open(1500);
    engine.forward({&a}, {1});
    engine.check_scores(a);
    engine.forward({&a, &b, &c}, {s.entries, 1100, 3 * s.entries - 1});
    engine.check_scores(c);
    for (int step = 0; step < 12; ++step) {
      std::vector<pooled_engine::sequence*> batch = {&a, &b, &c};
      std::shuffle(batch.begin(), batch.end(), engine.random());
      engine.forward(batch, {1, 1 + step % 3, 1});
      engine.check_scores(*batch.back());
      if (step % 5 == 4) {
        engine.truncate(b, b.tokens - 7);
        engine.forward({&b}, {1});
        engine.check_scores(b);
      }
    }
  });
}

TEST_CASE("K that is no number costs its own index keys, and is counted", "[conformance][pooled_keys]") {
  const auto s = GENERATE(from_range(std::begin(shapes), std::end(shapes)));
  const float bad = GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  CAPTURE(int(s.type), s.entries, bad);
  on_every_backend([&](const conformance_backend& backend, std::uint32_t seed) {
    pooled_engine engine(backend, s, seed);
    auto a = engine.open(600);
    engine.poison = bad;
    engine.forward({&a}, {2 * s.entries});
    engine.poison = 0;
    engine.forward({&a}, {1});
    engine.check_scores(a);
    CHECK(engine.select->counters().nan_keys == 2);  // one of KV head 0 in each layer
    const auto bytes = std::size_t(engine.store->geometry().index_keys.bytes());
    for (const std::int32_t lane : {0, 2}) {
      const auto rows = engine.stored(a, lane);
      CHECK(std::all_of(rows.begin(), rows.begin() + std::ptrdiff_t(bytes),
                        [](std::byte x) { return x == std::byte{0}; }));
      CHECK(std::any_of(rows.begin() + std::ptrdiff_t(bytes), rows.begin() + 2 * std::ptrdiff_t(bytes),
                        [](std::byte x) { return x != std::byte{0}; }));
    }
  });
}

TEST_CASE("a fork and a loaded state go on over pooled keys as their parent does, holding what it held",
          "[conformance][pooled_keys]") {
  on_every_backend([&](const conformance_backend& backend, std::uint32_t seed) {
    pooled_engine engine(backend, shapes[0], seed, 0.75f);
    auto a = engine.open(600);
    engine.forward({&a}, {203});
    for (int i = 0; i < 3; ++i) engine.forward({&a}, {1});
    auto child = a;
    child.handle =
        engine.store->fork(a.handle, fm::sequence_options_for(engine.policy, engine.store->geometry(), 600));
    engine.select->attach_fork(a.handle, child.handle);
    const auto state = engine.select->save_state(a.handle);
    REQUIRE(engine.select->save_state(child.handle) == state);
    engine.select->detach(a.handle);
    engine.select->load_state(a.handle, state.data(), state.size());
    REQUIRE(engine.select->save_state(a.handle) == state);
    for (int i = 0; i < 6; ++i) {
      engine.forward({&a}, {1});
      engine.check_scores(a);
      engine.forward({&child}, {2});
      engine.check_scores(child);
    }
    for (std::int32_t lane = 0; lane < 4; ++lane) {
      REQUIRE(engine.stored(a, lane) == engine.expected(a, lane));
      REQUIRE(engine.stored(child, lane) == engine.expected(child, lane));
    }
  });
}
