// SPDX-License-Identifier: MIT
#include <hwy/targets.h>

#include <bit>
#include <limits>

#include "src/indexer/pooled_keys_kernel.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/toy_engine.hpp"
#include "tests/unit/indexer/pooled_keys_support.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr index_key_type all_types[] = {index_key_type::e4m3, index_key_type::bf16, index_key_type::f16,
                                        index_key_type::int8, index_key_type::mxfp4};

double log_odds_of(double need) { return std::log(need) - std::log1p(-need); }

void check_scores(pooled_problem& p) {
  std::vector<float> scores;
  REQUIRE(p.score(scores) == status::ok);
  const auto needs = p.needs();
  for (std::size_t c = 0; c < needs.size(); ++c) {
    CAPTURE(c, needs[c], scores[c]);
    // Rounding of the products is relative to the largest of them.
    if (needs[c] > 1e-12 && needs[c] < 1 - 1e-5)
      REQUIRE(double(scores[c]) == Approx(log_odds_of(needs[c])).margin(2e-3));
    else
      REQUIRE((needs[c] < 0.5 ? scores[c] < -20 : scores[c] > 10));
  }
}

template <class F>
void on_every_target(const F& f) {
  for (std::int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
    hwy::SetSupportedTargetsForTest(targets & -targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    f();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace

TEST_CASE("a chunk's score is the log-odds of its largest softmax mass over lanes and heads, of any shape",
          "[pooled_keys]") {
  const auto seed = GENERATE(fresh_seeds(6));
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto draw = [&](std::initializer_list<int> from) {
    return *(from.begin() + std::ptrdiff_t(random() % from.size()));
  };
  pooled_shape s;
  s.type = all_types[random() % 5];
  s.layers = draw({1, 2, 3});
  s.kv_heads = draw({1, 2, 3});
  s.group = draw({1, 2, 4, 5});
  const bool fours = s.type == index_key_type::mxfp4;
  s.key_dim = fours ? draw({32, 64, 128}) : draw({1, 7, 20, 64, 80, 256});
  s.dim = fours ? draw({0, 32, 96}) : draw({0, 0, 5, 48, 100});
  s.tokens_per_key = draw({1, 4, 5, 8});
  s.keys_per_chunk = draw({1, 2, 3, 4, 7, 8, 16, 17, 33, 64});
  s.query_tokens = draw({1, 2, 8});
  s.layout = random() % 2 == 0 ? index_key_layout::planar : index_key_layout::interleaved;
  s.chunks = draw({1, 2, 17, 40, 131});
  CAPTURE(int(s.type), s.layers, s.kv_heads, s.group, s.key_dim, s.dim, s.keys_per_chunk, s.query_tokens,
          int(s.layout), s.chunks);
  pooled_problem p(s, seed);
  p.config.softmax_scale = random() % 2 == 0 ? 0 : 0.125f;
  p.config.uncounted_sink_chunks = draw({0, 0, 1, 3});
  p.config.uncounted_recent_chunks = draw({0, 0, 2});
  if (random() % 2 == 0) p.config.lanes.erase(p.config.lanes.begin());
  if (s.group > 1 && !p.config.lanes.empty())
    p.config.lanes[0].query_heads = {(p.config.lanes[0].kv_head + 1) * s.group - 1};
  if (p.config.lanes.empty()) p.config.lanes.push_back({0, 0, {}, {}, {}});
  if (s.dim != 0)
    for (auto& lane : p.config.lanes)
      if (lane.key_projection.empty()) lane.key_projection = p.values(std::int64_t{s.dim} * s.key_dim, 0.2f);
  p.build();
  on_every_target([&] { check_scores(p); });
}

TEST_CASE("a key is the mean of its tokens' keys of one KV head, projected where the lane says so",
          "[pooled_keys]") {
  const auto seed = GENERATE(fresh_seeds(4));
  const auto type = GENERATE(from_range(std::begin(all_types), std::end(all_types)));
  CAPTURE(seed, int(type));
  std::mt19937 random(seed);
  pooled_shape s;
  s.type = type;
  s.dim = random() % 2 == 0 ? 0 : 64;
  s.kv_heads = 3;
  s.tokens_per_key = 1 + int(random() % 9);
  pooled_problem p(s, seed);
  p.build();
  // Half of the widest step, of the key's largest value.
  const double error = type == index_key_type::mxfp4  ? 0.21
                       : type == index_key_type::e4m3 ? 16.5 / 448
                       : type == index_key_type::int8 ? 0.51 / 127
                                                      : 0.0041;
  for (std::size_t l = 0; l < p.lanes.size(); ++l) {
    const auto bytes = std::size_t(p.geometry.index_keys.bytes());
    for (std::size_t key = 0; key * bytes < p.lanes[l].size(); ++key) {
      const float* const rows = p.k[std::size_t(p.config.lanes[l].layer)].data() +
                                key * std::size_t(s.tokens_per_key * s.kv_heads * s.key_dim);
      const auto wanted = reference::pooled_key(p.index->config(), p.config.lanes[l], rows);
      const auto got = reference::index_key_values(p.geometry.index_keys, p.lanes[l].data() + key * bytes);
      double largest = 0;
      for (const double x : wanted) largest = std::max(largest, std::fabs(x));
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        CAPTURE(l, key, i, wanted[i]);
        REQUIRE(got[i] == Approx(wanted[i]).margin(largest * error));
      }
    }
  }
}

TEST_CASE("scores and keys have the same bits whatever the threads, the layout and the order of tasks",
          "[pooled_keys]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  pooled_shape s;
  s.type = GENERATE(index_key_type::int8, index_key_type::mxfp4);
  s.chunks = 300;
  s.keys_per_chunk = GENERATE(4, 16, 20);
  pooled_problem p(s, seed);
  p.build();
  std::vector<float> serial, other;
  const thread_hook one = serial_threads();
  REQUIRE(p.score(serial, &one) == status::ok);
  thread_hook backwards;
  backwards.run = [](void*, std::int32_t count, void (*task)(void*, std::int32_t), void* context) {
    while (count-- > 0) task(context, count);
  };
  REQUIRE(p.score(other, &backwards) == status::ok);
  CHECK(serial == other);
  REQUIRE(p.score(other) == status::ok);
  CHECK(serial == other);
  s.layout = index_key_layout::planar;
  pooled_problem planar(s, seed);
  planar.build();
  REQUIRE(planar.score(other) == status::ok);
  CHECK(serial == other);
}

TEST_CASE("chunks with the same keys have the same score", "[pooled_keys]") {
  pooled_shape s;
  s.chunks = 33;
  s.keys_per_chunk = GENERATE(3, 16, 32);
  pooled_problem p(s, flashmemory_test::fresh_seed());
  const std::size_t chunk = std::size_t(s.keys_per_chunk * s.tokens_per_key * s.kv_heads * s.key_dim);
  for (auto& layer : p.k)
    for (std::size_t c = 1; c < 33; ++c) std::copy_n(layer.data(), chunk, layer.data() + c * chunk);
  p.build();
  std::vector<float> scores;
  REQUIRE(p.score(scores) == status::ok);
  CHECK(std::count(scores.begin(), scores.end(), scores[0]) == 33);
  CHECK(scores[0] == Approx(log_odds_of(1.0 / 33)).margin(1e-4));
}

TEST_CASE("a query that is no number shows in every score, a key of a foreign reader in its chunk's alone",
          "[pooled_keys]") {
  pooled_shape s;
  s.type = GENERATE(index_key_type::e4m3, index_key_type::int8, index_key_type::bf16, index_key_type::mxfp4);
  CAPTURE(int(s.type));
  s.keys_per_chunk = GENERATE(4, 24);
  pooled_problem p(s, 3);
  p.build();
  std::vector<float> scores;
  on_every_target([&] {
    auto poisoned = p.lanes;
    const index_key_geometry& g = p.geometry.index_keys;
    std::byte* const key = poisoned[1].data() + (5 * s.keys_per_chunk + 2) * g.bytes();
    if (s.type == index_key_type::bf16)
      key[1] = key[0] = std::byte{0x7f}, key[0] = std::byte{0xff};
    else if (s.type == index_key_type::e4m3)
      key[3] = std::byte{0xff};
    else
      std::memset(key + g.value_bytes(), 0xff, std::size_t(g.scale_bytes()));
    p.reader = std::make_unique<reference::key_store>(p.geometry, poisoned);
    REQUIRE(p.score(scores) == status::ok);
    for (std::size_t c = 0; c < scores.size(); ++c) {
      CAPTURE(c);
      CHECK(std::isnan(scores[c]) == (c == 5));
    }
    p.reader = std::make_unique<reference::key_store>(p.geometry, p.lanes);
  });
  const float bad = GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  p.q[1].back() = bad;
  CAPTURE(bad);
  REQUIRE(p.score(scores) == status::ok);
  CAPTURE(scores);
  for (const float x : scores) CHECK(std::isnan(x));
}

TEST_CASE("large logits neither overflow nor lose the order of chunks", "[pooled_keys]") {
  pooled_shape s;
  s.chunks = 40;
  s.type = index_key_type::f16;
  s.query_tokens = 1;
  s.layers = s.kv_heads = s.group = 1;
  pooled_problem p(s, flashmemory_test::fresh_seed());
  const std::size_t chunk = std::size_t(s.keys_per_chunk * s.tokens_per_key * s.key_dim);
  std::fill(p.k[0].begin(), p.k[0].end(), 0.0f);
  std::fill(p.q[0].begin(), p.q[0].end(), 0.0f);
  const float most = GENERATE(1.0f, 40.0f, 3000.0f);
  p.q[0][0] = most;
  for (std::size_t c = 0; c < 40; ++c)
    for (std::size_t t = 0; t < 16; ++t) p.k[0][c * chunk + t * 32] = float(c);
  p.config.softmax_scale = 0.5f;
  p.build();
  std::vector<float> scores;
  REQUIRE(p.score(scores) == status::ok);
  for (std::size_t c = 0; c < 40; ++c) {
    CHECK(std::isfinite(scores[c]));
    if (c > 0) CHECK(scores[c] >= scores[c - 1]);
    if (c > 0 && most == 1) CHECK(scores[c] > scores[c - 1]);
  }
  CHECK(scores[39] > (most == 1 ? -1 : 16));
}

TEST_CASE("sinks that are not counted leave the others' mass to them", "[pooled_keys]") {
  pooled_shape s;
  s.layers = s.kv_heads = s.group = s.query_tokens = 1;
  s.type = index_key_type::f16;
  s.chunks = 9;
  pooled_problem p(s, 4);
  std::fill(p.k[0].begin(), p.k[0].end(), 0.0f);
  std::fill(p.q[0].begin(), p.q[0].end(), 0.0f);
  p.q[0][0] = 1;
  const std::size_t chunk = std::size_t(s.keys_per_chunk * s.tokens_per_key * s.key_dim);
  for (std::size_t t = 0; t < 16; ++t) p.k[0][t * 32] = 20;              // the sink
  for (std::size_t t = 0; t < 16; ++t) p.k[0][4 * chunk + t * 32] = 10;  // what is asked for
  for (std::size_t t = 0; t < 16; ++t) p.k[0][8 * chunk + t * 32] = 15;  // recent
  p.config.softmax_scale = 1;
  std::vector<float> scores;
  p.build();
  REQUIRE(p.score(scores) == status::ok);
  CHECK(scores[0] > 4);
  CHECK(scores[4] == Approx(-10.0).margin(0.1));
  p.config.uncounted_sink_chunks = 1;
  p.config.uncounted_recent_chunks = 1;
  p.build();
  REQUIRE(p.score(scores) == status::ok);
  CHECK(scores[4] == Approx(10 - std::log(6.0)).margin(0.01));
  CHECK(scores[0] == Approx(10.0).margin(0.01));
  CHECK(scores[8] == Approx(5.0).margin(0.01));
  p.config.uncounted_sink_chunks = 9;  // nothing would be left: all count
  p.build();
  REQUIRE(p.score(scores) == status::ok);
  CHECK(scores[4] == Approx(-10.0).margin(0.1));
}

TEST_CASE("a selector over pooled keys keeps the chunk that the newest queries look for", "[pooled_keys]") {
  kv_geometry g = toy::geometry(0);
  g.kv_heads = 2;
  pooled_keys_config config = pooled_keys_of(g, 4, {0, 1});
  config.type = index_key_type::int8;
  config.query_tokens = 2;
  pooled_keys_indexer index(config);
  g.index_keys = index.taps().reads;
  tiered_chunk_store store(toy::store_options(g));
  selection_policy policy;
  policy.interval = 1;
  policy.max_chunks = 5;  // two are chosen, one for each of the newest tokens
  policy.budget_fraction = 0;
  selector select(store, index, policy);
  const auto h = store.open(sequence_options_for(policy, g, 400));
  select.attach(h);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  constexpr std::int64_t tokens = 240;
  std::vector<float> k(tokens * 32, 0.0f);
  for (float& x : k) x = 0.1f * normal(random);
  // The second key of each chunk has a direction of its own.
  const auto direction = [](std::int64_t chunk, int i) {
    const bool odd = std::popcount(static_cast<std::uint64_t>(chunk % 16 & i)) % 2 != 0;
    return odd != (chunk >= 16) ? -1.0f : 1.0f;
  };
  for (std::int64_t t = 0; t < tokens; ++t)
    for (int i = 0; t % 8 >= 4 && i < 32; ++i) k[std::size_t(t * 32 + i)] += direction(t / 8, i % 16);
  const auto forward = [&](std::int64_t from, std::int64_t n, const std::vector<float>& q) {
    const batch_item item{h, from, std::int32_t(n)};
    const batch items(&item, 1);
    const view<const float, 3> rows(k.data() + from * 32, n, 2, 16);
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      REQUIRE(select.reads(layer, tap_kind::keys));
      REQUIRE(select.reads(layer, tap_kind::queries));
      REQUIRE_FALSE(select.reads(layer));
      REQUIRE(select.observe_keys(items, layer, rows, toy::host) == status::ok);
      REQUIRE(select.observe_queries(items, layer, view<const float, 2>(q.data(), n, 64), toy::host) ==
              status::ok);
      REQUIRE(store.append(items, layer, rows, rows, toy::host) == status::ok);
    }
    REQUIRE(select_chunks(select, items, toy::host) == status::ok);
  };
  std::vector<float> q(200 * 64, 0.0f);
  forward(0, 200, q);
  for (int step = 0; step < 40; ++step) {
    const auto chunk = std::int64_t(1 + random() % 22);
    // One head asks for it.
    std::vector<float> now(64, 0.0f);
    const int head = int(random() % 4);
    for (int i = 0; i < 16; ++i) now[std::size_t(head * 16 + i)] = 4 * direction(chunk, i);
    forward(200 + step, 1, now);
    const auto ids = toy::resident_ids(store, h);
    CAPTURE(step, chunk, head);
    REQUIRE(std::find(ids.begin(), ids.end(), chunk_id(chunk)) != ids.end());
  }
  CHECK(store.last_fault().code == status::ok);
}

TEST_CASE("taps name each layer's queries once and a lane's keys each, and a fingerprint what keys depend on",
          "[pooled_keys]") {
  pooled_shape s;
  pooled_problem p(s, 1);
  p.build();
  const indexer_taps& taps = p.index->taps();
  CHECK(std::string(taps.name) == "pooled_keys");
  CHECK(taps.log_odds);
  REQUIRE(taps.queries.size() == 2);
  CHECK(taps.queries[1].layer == 1);
  CHECK(taps.queries[1].kind == tap_kind::queries);
  CHECK(taps.queries[1].width == 4 * 32);
  CHECK(taps.queries[1].tokens == 3);
  REQUIRE(taps.index_keys.size() == 4);
  CHECK(taps.index_keys[3].layer == 1);
  CHECK(taps.index_keys[3].kind == tap_kind::keys);
  CHECK(taps.index_keys[3].width == 2 * 32);
  CHECK(taps.index_keys[3].window == 4);
  CHECK(taps.reads.lanes == 4);
  CHECK(taps.reads.dim == 32);
  CHECK(p.index->config().softmax_scale == Approx(1 / std::sqrt(32.0)));
  const auto print = [&](auto&& change) {
    pooled_keys_config c = p.config;
    change(c);
    return taps_of(c).index_key_fingerprint;
  };
  const std::uint64_t plain = print([](auto&) {});
  CHECK(plain != 0);
  CHECK(print([](auto& c) { c.query_tokens = 1; }) == plain);
  CHECK(print([](auto& c) { c.uncounted_sink_chunks = 1; }) == plain);
  CHECK(print([](auto& c) { c.tokens_per_key = 8; }) != plain);
  CHECK(print([](auto& c) { c.type = index_key_type::mxfp4; }) != plain);
  CHECK(print([](auto& c) { std::swap(c.lanes[0], c.lanes[1]); }) != plain);
  CHECK(print([](auto& c) { c.lanes[0].key_projection.assign(32 * 32, 0.5f); }) != plain);
}

TEST_CASE("a pooled-keys indexer that cannot work is refused with the field's name", "[pooled_keys]") {
  pooled_shape s;
  pooled_problem p(s, 1);
  p.build();
  const auto refuse = [&](const char* says, auto&& change) {
    pooled_keys_config c = p.config;
    change(c);
    CHECK_THROWS_AS(pooled_keys_indexer(c), argument_error);
    CHECK_THROWS_WITH(pooled_keys_indexer(c), Catch::Contains(says));
    CHECK_THROWS_AS(taps_of(c), argument_error);
  };
  refuse("kv_heads", [](auto& c) { c.kv_heads = 0; });
  refuse("query_heads", [](auto& c) { c.query_heads = 3; });
  refuse("key_dim", [](auto& c) { c.key_dim = 1025; });
  refuse("dim", [](auto& c) { c.dim = -1; });
  refuse("tokens_per_key", [](auto& c) { c.tokens_per_key = 0; });
  refuse("query_tokens", [](auto& c) { c.query_tokens = max_query_tap_tokens + 1; });
  refuse("softmax_scale", [](auto& c) { c.softmax_scale = not_a_number; });
  refuse("uncounted_sink_chunks", [](auto& c) { c.uncounted_sink_chunks = -1; });
  refuse("uncounted_recent_chunks", [](auto& c) { c.uncounted_recent_chunks = -1; });
  refuse("type", [](auto& c) { c.type = static_cast<index_key_type>(5); });
  refuse("mxfp4", [](auto& c) {
    c.key_dim = c.dim = 20;
    c.type = index_key_type::mxfp4;
  });
  refuse("lanes", [](auto& c) { c.lanes.clear(); });
  refuse("lane 1 looks at layer -1", [](auto& c) { c.lanes[1].layer = -1; });
  refuse("KV head 2", [](auto& c) { c.lanes[1].kv_head = 2; });
  refuse("query head 0", [](auto& c) { c.lanes[1].query_heads = {0}; });
  refuse("twice", [](auto& c) { c.lanes[0].query_heads = {1, 1}; });
  refuse("no projection", [](auto& c) { c.dim = 16; });
  refuse("key_projection of lane 0", [](auto& c) { c.lanes[0].key_projection.assign(5, 0.0f); });
  refuse("no key_projection", [](auto& c) { c.lanes[0].query_projection.assign(32 * 32, 0.0f); });
  refuse("at element 7", [](auto& c) {
    c.lanes[0].key_projection.assign(32 * 32, 0.0f);
    c.lanes[0].key_projection[7] = not_a_number;
  });
}

TEST_CASE("scoring and encoding refuse what does not fit", "[pooled_keys]") {
  pooled_shape s;
  pooled_problem p(s, 1);
  p.build();
  std::vector<float> out(17);
  const auto answer = [&](auto&& change) {
    score_request r = p.request();
    change(r);
    return p.index->score(r, view<float, 1>(out.data(), 17));
  };
  CHECK(answer([](auto&) {}) == status::ok);
  CHECK(answer([](auto& r) { r.reader = nullptr; }) == status::null_data);
  CHECK(answer([](auto& r) { r.chunks = 16; }) == status::bad_shape);
  CHECK(answer([](auto& r) { r.chunks = -1; }) == status::bad_argument);
  CHECK(answer([](auto& r) { r.queries = nullptr; }) == status::null_data);
  CHECK(answer([](auto& r) { r.scratch.bytes /= 2; }) == status::workspace_small);
  CHECK(answer([](auto& r) { r.scratch.data = nullptr; }) == status::null_data);
  std::vector<float> more(18);
  score_request r = p.request();
  r.chunks = 18;
  CHECK(p.index->score(r, view<float, 1>(more.data(), 18)) == status::index_keys_missing);
  r.chunks = 0;
  CHECK(p.index->score(r, view<float, 1>(nullptr, 0)) == status::ok);
  p.reader->failure = status::stale_sequence;
  CHECK(answer([](auto&) {}) == status::stale_sequence);
  kv_geometry g = p.geometry;
  g.index_keys.type = index_key_type::e4m3;
  reference::key_store other(g, p.lanes);
  CHECK(answer([&](auto& q) { q.reader = &other; }) == status::bad_shape);

  std::vector<std::byte> keys(std::size_t(2 * p.geometry.index_keys.bytes()));
  const auto encode = [&](std::int32_t lane, std::int64_t rows, std::int64_t width, std::int64_t bytes) {
    return p.index->encode_index_keys(lane, view<const float, 2>(p.k[0].data(), rows, width),
                                      view<std::byte, 2>(keys.data(), 2, bytes), {}, serial_threads());
  };
  const std::int64_t bytes = p.geometry.index_keys.bytes();
  CHECK(encode(0, 8, 64, bytes) == status::ok);
  CHECK(encode(4, 8, 64, bytes) == status::out_of_range);
  CHECK(encode(-1, 8, 64, bytes) == status::out_of_range);
  CHECK(encode(0, 7, 64, bytes) == status::bad_shape);
  CHECK(encode(0, 8, 32, bytes) == status::bad_shape);
  CHECK(encode(0, 8, 64, bytes - 1) == status::bad_shape);
}
