// SPDX-License-Identifier: MIT
#include <limits>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/unit/indexer/dual_encoder_support.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

namespace {

const float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// [retriever][key] logits by the double-precision reference.
std::vector<std::vector<double>> reference_logits(const dual_encoder_config& config,
                                                  const std::vector<std::vector<float>>& hidden_of_layer,
                                                  const std::vector<std::vector<std::byte>>& streams,
                                                  std::int64_t position) {
  std::vector<std::vector<double>> logits;
  for (std::size_t r = 0; r < config.retrievers.size(); ++r) {
    const auto& w = config.retrievers[r];
    const auto q = reference::encode_query(config, w, hidden_of_layer[std::size_t(w.query_layer)], position);
    logits.emplace_back();
    for (std::size_t k = 0; k < streams[r].size() / 132; ++k) {
      logits.back().push_back(reference::key_logit(q, &streams[r][k * 132], double(w.logit_offset)));
    }
  }
  return logits;
}

/// What the retrievers together say of each key of a chunk.
std::vector<double> combined_logits(const dual_encoder_config& config,
                                    const std::vector<std::vector<double>>& logits, std::size_t chunk,
                                    std::size_t keys) {
  std::vector<double> combined;
  for (std::size_t k = chunk * keys; k < (chunk + 1) * keys; ++k) {
    std::vector<double> z;
    for (const auto& row : logits) z.push_back(row[k]);
    combined.push_back(reference::combine(config.combine, z));
  }
  return combined;
}

double chunk_score(const dual_encoder_config& config, const std::vector<std::vector<double>>& logits,
                   std::size_t chunk, std::size_t keys) {
  double best = -INFINITY, count = 0, sum = 0;
  for (const double z : combined_logits(config, logits, chunk, keys)) {
    best = std::max(best, z);
    count += z > 0;
    sum += reference::sigmoid(z);
  }
  return config.reduce == key_reduction::max ? best : config.reduce == key_reduction::sum ? sum : count;
}

/// Keys that a count may take for positive or not: their log-odds are 0 up to rounding.
double undecided(const dual_encoder_config& config, const std::vector<std::vector<double>>& logits,
                 std::size_t chunk, std::size_t keys) {
  double count = 0;
  for (const double z : combined_logits(config, logits, chunk, keys)) count += std::fabs(z) <= 3e-5;
  return config.reduce == key_reduction::count_positive ? count : 0;
}

/// Retriever whose logit of a key is its gate times the key's scale: the query is e_0 before and after the
/// transform of a constant, so that tests can choose logits at will.
dual_encoder_config chosen_logits(std::int32_t retrievers) {
  dual_encoder_config c;
  c.hidden = c.rank = c.heads = 1;
  c.q_norm_eps = 0;
  for (std::int32_t r = 0; r < retrievers; ++r) {
    retriever_weights w;
    w.name = "r" + std::to_string(r);
    w.wq_a = {1};
    w.q_norm = {1};
    w.wq_b.assign(128, 0.0f);
    w.wq_b[0] = 1;
    w.weights_proj = {1};
    c.retrievers.push_back(w);
  }
  return c;
}

/// Keys for which a retriever of chosen_logits() gives z - offset, with offset below every z.
std::vector<std::byte> keys_for(const std::vector<float>& z, float offset) {
  std::vector<std::byte> keys(z.size() * 132);
  for (std::size_t k = 0; k < z.size(); ++k) {
    keys[k * 132] = std::byte(to_e4m3(1.0f));
    // gate 128^-1/2, query element 128^-1/2
    set_scale(keys, std::int64_t(k), (z[k] - offset) * 128);
  }
  return keys;
}

std::vector<float> scores_of(const std::vector<std::vector<float>>& z, ensemble combine, key_reduction reduce,
                             std::int32_t keys_per_chunk) {
  auto config = chosen_logits(std::int32_t(z.size()));
  config.combine = combine;
  config.reduce = reduce;
  std::vector<std::vector<std::byte>> streams;
  for (std::size_t r = 0; r < z.size(); ++r) {
    float offset = 0;
    for (const float v : z[r]) offset = std::min(offset, std::isfinite(v) ? v : 0.0f);
    config.retrievers[r].logit_offset = offset;
    streams.push_back(keys_for(z[r], offset));
  }
  dual_encoder_indexer index(config);
  const float hidden = 1;
  scoring s(reference::key_geometry(std::int32_t(z.size()), keys_per_chunk, index_key_layout::interleaved),
            streams, {&hidden}, std::int64_t(z[0].size()) / keys_per_chunk);
  std::vector<float> scores;
  REQUIRE(s.run(index, scores) == status::ok);
  return scores;
}

}  // namespace

TEST_CASE("score() combines retrievers per key, then keys per chunk, as the reference", "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (const auto combine : {ensemble::max, ensemble::mean}) {
    for (const auto reduce : {key_reduction::max, key_reduction::count_positive, key_reduction::sum}) {
      for (const std::int32_t retrievers : {1, 3, 5}) {
        for (const std::int32_t keys : {1, 3, 16}) {
          const auto layout = random() % 2 ? index_key_layout::planar : index_key_layout::interleaved;
          CAPTURE(int(combine), int(reduce), retrievers, keys, int(layout));
          auto config = random_config(random, 24, 10, 3, retrievers, false);
          config.rope.dim = 64;
          config.bf16_rounding = false;  // so that the reference's rounding cannot differ by a step
          config.combine = combine;
          config.reduce = reduce;
          dual_encoder_indexer index(config);
          std::vector<std::vector<float>> hidden;
          std::vector<const float*> taps;
          for (std::int32_t l = 0; l < (retrievers + 1) / 2; ++l) hidden.push_back(normals(random, 24));
          for (const auto& h : hidden) taps.push_back(h.data());
          constexpr std::int64_t chunks = 23;
          std::vector<std::vector<std::byte>> streams;
          for (std::int32_t r = 0; r < retrievers; ++r)
            streams.push_back(random_keys(random, chunks * keys + 2));
          scoring s(reference::key_geometry(retrievers, keys, layout), streams, taps, chunks);
          std::vector<float> scores;
          REQUIRE(s.run(index, scores) == status::ok);
          const auto logits = reference_logits(config, hidden, streams, s.request.position);
          for (std::size_t c = 0; c < std::size_t(chunks); ++c) {
            CAPTURE(c);
            const double margin = 3e-5 + undecided(config, logits, c, std::size_t(keys));
            CHECK(double(scores[c]) ==
                  Approx(chunk_score(config, logits, c, std::size_t(keys))).epsilon(2e-5).margin(margin));
          }
        }
      }
    }
  }
}

TEST_CASE("The mean ensemble neither overflows nor saturates", "[dual_encoder]") {
  const float z[][2] = {{0, 0},       {1, -1},    {20, 20},    {-20, -20},   {39, 41},     {-39, -41},
                        {80, 81},     {-80, -81}, {200, -200}, {200, 200},   {-500, -500}, {-500, -600},
                        {3000, 2000}, {45, 0},    {-45, 0},    {1e4f, 1e4f}, {-50, 3}};
  for (const auto& [a, b] : z) {
    CAPTURE(a, b);
    const float score = scores_of({{a}, {b}}, ensemble::mean, key_reduction::max, 1)[0];
    // log(yes / no) from logs, exact for any size
    const auto log_sigmoid = [](long double x) {
      return x < 0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x));
    };
    const auto log_sum = [](long double x, long double y) {
      return std::max(x, y) + std::log1p(std::exp(-std::fabs(x - y)));
    };
    const long double want =
        log_sum(log_sigmoid(a), log_sigmoid(b)) - log_sum(log_sigmoid(-a), log_sigmoid(-b));
    CHECK(double(score) == Approx(double(want)).epsilon(1e-5).margin(3e-5));
  }
}

TEST_CASE("The mean of equal logits is that logit, at any size", "[dual_encoder]") {
  const std::vector<float> z = {-300, -41, -40, -39, -10, -1, 0, 0.5f, 10, 39, 40, 41, 300};
  const auto scores = scores_of({z, z, z}, ensemble::mean, key_reduction::max, 1);
  for (std::size_t i = 0; i < z.size(); ++i) CHECK(scores[i] == Approx(z[i]).epsilon(1e-5).margin(3e-5));
}

TEST_CASE("count_positive counts keys above one half, strictly; sum adds probabilities", "[dual_encoder]") {
  // Nothing negative, so that a logit of 0 is exactly 0.
  const std::vector<float> z = {0, 0, 0, 0, 1, 0, 2, 0, 5, 5, 5, 5, 0, 3, 0, 0};
  CHECK(scores_of({z}, ensemble::max, key_reduction::count_positive, 4) == std::vector<float>{0, 2, 4, 1});
  const auto sums = scores_of({z}, ensemble::max, key_reduction::sum, 4);
  for (std::size_t c = 0; c < 4; ++c) {
    double want = 0;
    for (std::size_t k = 0; k < 4; ++k) want += reference::sigmoid(double(z[c * 4 + k]));
    CHECK(double(sums[c]) == Approx(want).epsilon(1e-5));
  }
}

TEST_CASE("Scores do not depend on threads, order of tasks or how many chunks are asked for",
          "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const std::int32_t keys = GENERATE(1, 7, 16, 3000);
  auto config = random_config(random, 24, 10, 3, 3, false);
  config.rope.dim = 64;
  config.combine = ensemble::mean;
  config.reduce = key_reduction::sum;
  dual_encoder_indexer index(config);
  const auto a = normals(random, 24), b = normals(random, 24);
  const std::int64_t chunks = keys == 3000 ? 3 : 4500 / keys;
  std::vector<std::vector<std::byte>> streams;
  for (int r = 0; r < 3; ++r) streams.push_back(random_keys(random, chunks * keys));
  scoring s(reference::key_geometry(3, keys, index_key_layout::planar), streams, {a.data(), b.data()},
            chunks);
  std::vector<float> serial, parallel, reversed, fewer;
  REQUIRE(s.run(index, serial) == status::ok);
  REQUIRE(s.run(index, parallel, default_threads()) == status::ok);
  REQUIRE(s.run(index, reversed, backwards()) == status::ok);
  CHECK(serial == parallel);
  CHECK(serial == reversed);
  s.request.chunks = chunks - 1;
  REQUIRE(s.run(index, fewer) == status::ok);
  CHECK(std::equal(fewer.begin(), fewer.end(), serial.begin()));
}

TEST_CASE("score() writes through a strided view", "[dual_encoder]") {
  std::mt19937 random(11);
  dual_encoder_indexer index(random_config(random, 8, 4, 2, 1, false));
  const auto h = normals(random, 8);
  scoring s(reference::key_geometry(1, 2, index_key_layout::interleaved), {random_keys(random, 10)},
            {h.data()}, 5);
  std::vector<float> dense, wide(15, 9.0f);
  REQUIRE(s.run(index, dense) == status::ok);
  view<float, 1> strided(wide.data(), 5);
  strided.stride[0] = 3;
  const scratch_memory memory(index);
  s.request.scratch = memory.scratch;
  REQUIRE(index.score(s.request, strided) == status::ok);
  for (std::size_t c = 0; c < 5; ++c) {
    CHECK(wide[c * 3] == dense[c]);
    CHECK(wide[c * 3 + 1] == 9.0f);
  }
}

TEST_CASE("A NaN key gives a NaN score for exactly its chunk, with every ensemble and reduction",
          "[dual_encoder]") {
  std::mt19937 random(12);
  for (const auto combine : {ensemble::max, ensemble::mean}) {
    for (const auto reduce : {key_reduction::max, key_reduction::count_positive, key_reduction::sum}) {
      CAPTURE(int(combine), int(reduce));
      auto config = random_config(random, 8, 4, 2, 2, false);
      config.combine = combine;
      config.reduce = reduce;
      dual_encoder_indexer index(config);
      const auto h = normals(random, 8);
      std::vector<std::vector<std::byte>> streams = {random_keys(random, 40), random_keys(random, 40)};
      streams[1][13 * 132 + 50] = std::byte{0xff};  // chunk 3
      set_scale(streams[0], 39, not_a_number);      // chunk 9
      scoring s(reference::key_geometry(2, 4, index_key_layout::planar), streams, {h.data()}, 10);
      std::vector<float> scores;
      REQUIRE(s.run(index, scores) == status::ok);
      for (std::size_t c = 0; c < 10; ++c) CHECK(std::isnan(scores[c]) == (c == 3 || c == 9));
    }
  }
}

TEST_CASE("A NaN hidden state gives NaN scores", "[dual_encoder]") {
  std::mt19937 random(13);
  dual_encoder_indexer index(random_config(random, 8, 4, 2, 2, false));
  auto h = normals(random, 8);
  h[3] = not_a_number;
  scoring s(reference::key_geometry(2, 4, index_key_layout::interleaved),
            {random_keys(random, 8), random_keys(random, 8)}, {h.data()}, 2);
  std::vector<float> scores;
  REQUIRE(s.run(index, scores) == status::ok);
  for (const float z : scores) CHECK(std::isnan(z));
}

TEST_CASE("score() refuses what it cannot score and leaves the scores alone", "[dual_encoder]") {
  std::mt19937 random(14);
  dual_encoder_indexer index(random_config(random, 8, 4, 2, 2, false));
  const auto h = normals(random, 8);
  const auto geometry = reference::key_geometry(2, 4, index_key_layout::interleaved);
  const auto keys = random_keys(random, 8);
  scoring s(geometry, {keys, random_keys(random, 7)}, {h.data()}, 1);
  std::vector<float> scores;
  CHECK(s.run(index, scores) == status::ok);
  const auto untouched = [&] {
    return std::all_of(scores.begin(), scores.end(), [](float v) { return v == -77.0f; });
  };
  s.request.chunks = 2;  // the second stream has 7 of 8 keys
  CHECK(s.run(index, scores) == status::index_keys_missing);
  CHECK(untouched());
  s.request.chunks = 0;
  CHECK(s.run(index, scores) == status::ok);
  s.request.chunks = 1;
  s.store.failure = status::stale_sequence;
  CHECK(s.run(index, scores) == status::stale_sequence);
  CHECK(untouched());
  s.store.failure = status::ok;

  s.request.position = -1;
  CHECK(s.run(index, scores) == status::bad_argument);
  s.request.position = 0;
  s.request.reader = nullptr;
  CHECK(s.run(index, scores) == status::null_data);
  s.request.reader = &s.store;
  s.request.queries = nullptr;
  CHECK(s.run(index, scores) == status::null_data);
  s.queries[0] = nullptr;
  s.request.queries = s.queries.data();
  CHECK(s.run(index, scores) == status::null_data);
  s.queries[0] = h.data();
  CHECK(untouched());

  const scratch_memory memory(index);
  const auto call = [&](std::int64_t n, workspace w) {
    s.request.scratch = w;
    return index.score(s.request, view<float, 1>(scores.data(), n));
  };
  CHECK(call(2, memory.scratch) == status::bad_shape);
  CHECK(call(1, {memory.scratch.data, memory.scratch.bytes - 1}) == status::workspace_small);
  CHECK(call(1, {}) == status::workspace_small);
  CHECK(call(1, {nullptr, memory.scratch.bytes}) == status::null_data);
  CHECK(untouched());
  CHECK(call(1, memory.scratch) == status::ok);

  auto other = geometry;
  other.index_keys.lanes = 1;
  CHECK(scoring(other, {keys}, {h.data()}, 1).run(index, scores) == status::bad_shape);
  other = geometry;
  other.index_keys.tokens_per_key = 2;
  CHECK(scoring(other, {keys, keys}, {h.data()}, 1).run(index, scores) == status::bad_shape);
  other = geometry;
  other.index_keys.dim = 64;
  CHECK(scoring(other, {keys, keys}, {h.data()}, 1).run(index, scores) == status::bad_shape);
}

TEST_CASE("Taps name each query layer once and each retriever's keys", "[dual_encoder]") {
  std::mt19937 random(15);
  auto config = random_config(random, 8, 4, 2, 3, true);
  config.retrievers[0].query_layer = 6;
  config.retrievers[1].query_layer = 7;
  config.retrievers[2].query_layer = 6;
  config.key_window = 16;
  const dual_encoder_indexer index(config);
  REQUIRE(index.taps().queries.size() == 2);
  CHECK(index.taps().queries[0].layer == 6);
  CHECK(index.taps().queries[1].layer == 7);
  CHECK(index.taps().queries[1].kind == tap_kind::hidden);
  CHECK(index.taps().queries[1].width == 8);
  REQUIRE(index.taps().index_keys.size() == 3);
  CHECK(index.taps().index_keys[2].layer == 2);
  CHECK(index.taps().index_keys[2].width == 8);
  CHECK(index.taps().index_keys[2].tokens_per_key == 4);
  CHECK(index.taps().index_keys[2].window == 16);
  CHECK(index.taps().reads.lanes == 3);
  CHECK(std::string(index.taps().name) == "dual_encoder");
  CHECK(index.taps().log_odds);
  for (auto& r : config.retrievers) r.wk.clear();
  config.reduce = key_reduction::sum;
  const dual_encoder_indexer without(config);
  CHECK(without.taps().index_keys.size() == 0);
  CHECK(without.taps().reads.lanes == 3);
  CHECK_FALSE(without.taps().log_odds);
}

TEST_CASE("Each retriever reads the vector of its own query layer", "[dual_encoder]") {
  std::mt19937 random(16);
  auto config = random_config(random, 8, 4, 2, 2, false);
  config.retrievers[0].query_layer = 7;
  config.retrievers[1].query_layer = 6;
  config.bf16_rounding = false;
  dual_encoder_indexer index(config);
  std::vector<std::vector<float>> hidden(8);
  hidden[6] = normals(random, 8);
  hidden[7] = normals(random, 8);
  const std::vector<std::vector<std::byte>> streams = {random_keys(random, 6), random_keys(random, 6)};
  scoring s(reference::key_geometry(2, 1, index_key_layout::interleaved), streams,
            {hidden[7].data(), hidden[6].data()}, 6);
  std::vector<float> scores;
  REQUIRE(s.run(index, scores) == status::ok);
  const auto logits = reference_logits(config, hidden, streams, s.request.position);
  for (std::size_t c = 0; c < 6; ++c)
    CHECK(double(scores[c]) == Approx(chunk_score(config, logits, c, 1)).epsilon(2e-5).margin(2e-5));
}

TEST_CASE("check_compatible() names the first difference between indexer and store", "[dual_encoder]") {
  using Catch::Matchers::Contains;
  std::mt19937 random(17);
  const dual_encoder_indexer index(random_config(random, 8, 4, 2, 3, true));
  const auto good = reference::key_geometry(3, 4, index_key_layout::planar);
  CHECK_NOTHROW(check_compatible(index.taps(), good));
  const auto refuse = [&](auto&& change, const char* says) {
    auto g = good;
    change(g);
    CHECK_THROWS_AS(check_compatible(index.taps(), g), argument_error);
    CHECK_THROWS_WITH(check_compatible(index.taps(), g), Contains(says) && Contains("dual_encoder"));
  };
  refuse([](auto& g) { g.index_keys.lanes = 2; }, "3 lanes");
  refuse([](auto& g) { g.index_keys.dim = 64; }, "128 x e4m3");
  refuse([](auto& g) { g.index_keys.type = index_key_type::int8; }, "128 x int8");
  refuse([](auto& g) { g.index_keys.tokens_per_key = 8; }, "4 tokens a key");
  refuse([](auto& g) { g.layers = 2; }, "layer 2 of 2");
}
