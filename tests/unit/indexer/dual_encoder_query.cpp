// SPDX-License-Identifier: MIT
#include <array>
#include <limits>

#include "src/indexer/rope.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/unit/indexer/dual_encoder_support.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

TEST_CASE("The YaRN table holds the published frequencies", "[dual_encoder]") {
  rope_options options;
  options.dim = 64;
  const auto g = detail::yarn_frequencies(options);
  const std::pair<std::size_t, double> golden[] = {{0, 1},
                                                   {1, 6.87656045e-1},
                                                   {14, 5.286856554e-3},
                                                   {15, 3.635538509e-3},
                                                   {16, 2.265624935e-3},
                                                   {20, 2.969777852e-4},
                                                   {24, 1.953125320e-5},
                                                   {25, 5.372312444e-6},
                                                   {31, 5.680529398e-7}};
  for (const auto& [i, value] : golden) {
    CAPTURE(i);
    CHECK(std::fabs(double(g[i]) / value - 1) < 1e-9);
  }
  for (int i = 0; i < 32; ++i) {
    CAPTURE(i);
    CHECK(g[std::size_t(i)] == reference::yarn_frequency_float(options, i));
    CHECK(double(g[std::size_t(i)]) == Approx(reference::yarn_frequency(options, i)).epsilon(3e-7));
  }
}

TEST_CASE("With factor 1 the table is plain RoPE", "[dual_encoder]") {
  rope_options options;
  options.factor = 1;
  options.base = 10000;
  const auto g = detail::yarn_frequencies(options);
  for (int i = 0; i < 32; ++i)
    CHECK(double(g[std::size_t(i)]) == Approx(std::pow(10000.0, -i / 32.0)).epsilon(3e-7));
}

TEST_CASE("Positions at or beyond max_positions turn like the last one", "[dual_encoder]") {
  const auto g = detail::yarn_frequencies(rope_options());
  const auto last = detail::rotation_at(g, 999, 1000);
  for (const std::int64_t p : {std::int64_t{1000}, std::int64_t{1} << 60}) {
    const auto beyond = detail::rotation_at(g, p, 1000);
    CHECK(beyond.cosine == last.cosine);
    CHECK(beyond.sine == last.sine);
  }
  CHECK(detail::rotation_at(g, 998, 1000).sine != last.sine);
  CHECK(last.sine[0] == std::sin(999.0f));
}

TEST_CASE("encode_query() follows the reference for any dimensions, rounding and rotation",
          "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  struct shape {
    std::int32_t hidden, rank, heads;
  };
  for (const shape s : {shape{1, 1, 1}, {7, 5, 3}, {64, 16, 4}, {96, 48, 5}, {257, 31, 2}, {300, 130, 17}}) {
    for (const bool rounding : {false, true}) {
      for (const std::int32_t dim : {0, 64}) {
        CAPTURE(s.hidden, s.rank, s.heads, rounding, dim);
        auto config = random_config(random, s.hidden, s.rank, s.heads, 2, false);
        config.bf16_rounding = rounding;
        config.rope.dim = dim;
        const dual_encoder_indexer index(config);
        const scratch_memory memory(index);
        const auto hidden = normals(random, s.hidden);
        const std::int64_t position = std::int64_t(random() % 600000);
        CAPTURE(position);
        std::vector<float> queries(std::size_t(s.heads) * 128), gates(std::size_t(s.heads));
        REQUIRE(index.encode_query(1, hidden.data(), position, queries.data(), gates.data(),
                                   memory.scratch) == status::ok);
        const auto want = reference::encode_query(config, config.retrievers[1], hidden, position);
        for (std::size_t h = 0; h < gates.size(); ++h) {
          CHECK(double(gates[h]) == Approx(want.gates[h]).margin(1e-6));
          // Its own inverse: what was rounded is compared where it was rounded. After sums of another order a bf16
          // number may lie one step off, and RoPE then moves its neighbour too; a few of 128 may.
          const auto got = reference::hadamard({&queries[h * 128], &queries[h * 128] + 128});
          const auto expected = reference::hadamard(want.heads[h]);
          double size = 0;
          for (const double v : expected) size += v * v;
          int stepped = 0;
          for (std::size_t d = 0; d < 128; ++d) {
            const double error = std::fabs(got[d] - expected[d]);
            if (error <= 2e-6 * std::sqrt(size) + 1e-7) continue;
            CAPTURE(h, d);
            CHECK(error <= 0x1p-5 * std::max(std::fabs(expected[d]), std::fabs(expected[d ^ 1])));
            ++stepped;
          }
          CHECK(stepped <= (rounding ? 8 : 0));
        }
      }
    }
  }
}

TEST_CASE("At position 0 RoPE is the identity", "[dual_encoder]") {
  std::mt19937 random(1);
  auto config = random_config(random, 32, 8, 3, 1, false);
  std::vector<float> with(3 * 128), without(3 * 128), gates(3);
  const auto hidden = normals(random, 32);
  for (const std::int32_t dim : {0, 64}) {
    config.rope.dim = dim;
    const dual_encoder_indexer index(config);
    const scratch_memory memory(index);
    REQUIRE(index.encode_query(0, hidden.data(), 0, (dim ? with : without).data(), gates.data(),
                               memory.scratch) == status::ok);
  }
  CHECK(with == without);
}

TEST_CASE("A query equal to its key in one of 128 heads scores 1/128", "[dual_encoder]") {
  dual_encoder_config config;
  config.hidden = 1;
  config.rank = 1;
  config.heads = 128;
  retriever_weights w;
  w.name = "l0";
  w.wq_a = {1};
  w.q_norm = {1};
  w.wq_b.assign(128 * 128, 0.0f);
  w.wq_b[0] = 1;  // head 0: a unit vector
  w.weights_proj.assign(128, 1.0f);
  config.retrievers.push_back(w);
  config.q_norm_eps = 0;
  const dual_encoder_indexer index(config);
  const scratch_memory memory(index);
  const float hidden = 1;
  std::vector<float> queries(128 * 128), gates(128);
  REQUIRE(index.encode_query(0, &hidden, 0, queries.data(), gates.data(), memory.scratch) == status::ok);
  std::vector<std::byte> key(132);
  for (std::size_t d = 0; d < 128; ++d) key[d] = std::byte(to_e4m3(1.0f));  // the transform of a unit vector
  set_scale(key, 0, 0.0883883476f);
  float logit;
  REQUIRE(index.score_keys(0, queries.data(), gates.data(), key.data(), 1, 1, index_key_layout::interleaved,
                           &logit, serial_threads()) == status::ok);
  CHECK(logit == Approx(1.0f / 128).epsilon(1e-6));
}

TEST_CASE("encode_query() refuses bad arguments and writes nothing", "[dual_encoder]") {
  std::mt19937 random(2);
  const dual_encoder_indexer index(random_config(random, 16, 20, 2, 2, false));
  const scratch_memory memory(index);
  const auto hidden = normals(random, 16);
  std::vector<float> queries(256, 5.0f), gates(2, 5.0f);
  const auto call = [&](std::int32_t r, const float* x, std::int64_t p, float* q, float* g, workspace w) {
    return index.encode_query(r, x, p, q, g, w);
  };
  CHECK(call(-1, hidden.data(), 0, queries.data(), gates.data(), memory.scratch) == status::out_of_range);
  CHECK(call(2, hidden.data(), 0, queries.data(), gates.data(), memory.scratch) == status::out_of_range);
  CHECK(call(0, hidden.data(), -1, queries.data(), gates.data(), memory.scratch) == status::bad_argument);
  CHECK(call(0, nullptr, 0, queries.data(), gates.data(), memory.scratch) == status::null_data);
  CHECK(call(0, hidden.data(), 0, nullptr, gates.data(), memory.scratch) == status::null_data);
  CHECK(call(0, hidden.data(), 0, queries.data(), nullptr, memory.scratch) == status::null_data);
  CHECK(call(0, hidden.data(), 0, queries.data(), gates.data(), {memory.scratch.data, 79}) ==
        status::workspace_small);
  CHECK(call(0, hidden.data(), 0, queries.data(), gates.data(), {}) == status::workspace_small);
  CHECK(call(0, hidden.data(), 0, queries.data(), gates.data(), {nullptr, 1 << 20}) == status::null_data);
  CHECK(queries == std::vector<float>(256, 5.0f));
  CHECK(gates == std::vector<float>(2, 5.0f));
}

TEST_CASE("The constructor refuses what cannot work, naming the retriever and the tensor or the field",
          "[dual_encoder]") {
  using Catch::Matchers::Contains;
  std::mt19937 random(3);
  const auto good = random_config(random, 12, 6, 2, 2, true);
  const auto refuse = [&](auto&& change, const char* says) {
    auto config = good;
    change(config);
    CAPTURE(says);
    CHECK_THROWS_AS(dual_encoder_indexer(config), argument_error);
    CHECK_THROWS_WITH(dual_encoder_indexer(config), Contains(says));
  };
  CHECK_NOTHROW(dual_encoder_indexer(good));
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::pair<const char*, std::vector<float> retriever_weights::*> tensors[] = {
      {"wq_a", &retriever_weights::wq_a},
      {"q_norm", &retriever_weights::q_norm},
      {"wq_b", &retriever_weights::wq_b},
      {"weights_proj", &retriever_weights::weights_proj},
      {"wk", &retriever_weights::wk}};
  for (const auto& [name, member] : tensors) {
    const std::string says = std::string("'r1': ") + name;
    for (const float bad : {inf, -inf, nan}) {
      refuse([&](auto& c) { (c.retrievers[1].*member).back() = bad; }, says.c_str());
    }
    refuse([&](auto& c) { (c.retrievers[1].*member).pop_back(); }, says.c_str());
    refuse([&](auto& c) { (c.retrievers[1].*member).push_back(0); }, says.c_str());
  }
  refuse([&](auto& c) { c.retrievers[1].logit_offset = nan; }, "'r1': logit_offset");
  refuse([&](auto& c) { c.retrievers[1].wk.clear(); }, "'r1' has no wk");
  refuse([&](auto& c) { c.retrievers[0].wk.clear(); }, "'r1' has wk");
  refuse([&](auto& c) { c.retrievers[1].name = "r0"; }, "'r0' stands twice");
  refuse([&](auto& c) { c.retrievers[1].name = ""; }, "cannot name");
  refuse([&](auto& c) { c.retrievers[1].name = "a.b"; }, "'a.b'");
  refuse([&](auto& c) { c.retrievers[1].query_layer = -1; }, "'r1'");
  refuse([&](auto& c) { c.retrievers[1].key_layer = -1; }, "'r1'");
  refuse([&](auto& c) { c.retrievers.clear(); }, "retrievers is 0");
  refuse([&](auto& c) { c.hidden = 0; }, "hidden");
  refuse([&](auto& c) { c.rank = -1; }, "rank");
  refuse([&](auto& c) { c.heads = 0; }, "heads");
  refuse([&](auto& c) { c.heads = 3; }, "wq_b");
  refuse([&](auto& c) { c.q_norm_eps = -1; }, "q_norm_eps");
  refuse([&](auto& c) { c.q_norm_eps = nan; }, "q_norm_eps");
  refuse([&](auto& c) { c.tokens_per_key = 0; }, "tokens_per_key");
  refuse([&](auto& c) { c.key_window = 3; }, "key_window");
  refuse([&](auto& c) { c.key_scale_floor = 0; }, "key_scale_floor");
  refuse([&](auto& c) { c.key_scale_floor = inf; }, "key_scale_floor");
  refuse([&](auto& c) { c.rope.dim = 32; }, "rope.dim");
  refuse([&](auto& c) { c.rope.base = 1; }, "rope.base");
  refuse([&](auto& c) { c.rope.factor = 0.5; }, "rope.factor");
  refuse([&](auto& c) { c.rope.original_length = 0; }, "rope.original_length");
  refuse([&](auto& c) { c.rope.beta_slow = 0; }, "rope.beta_slow");
  refuse([&](auto& c) { c.rope.beta_fast = 0.5; }, "rope.beta_fast");
  refuse([&](auto& c) { c.rope.max_positions = 0; }, "rope.max_positions");
  refuse([&](auto& c) { c.combine = static_cast<ensemble>(9); }, "combine");
  refuse([&](auto& c) { c.reduce = static_cast<key_reduction>(9); }, "reduce");
}
