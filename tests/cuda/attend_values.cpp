// SPDX-License-Identifier: MIT
#include "tests/cuda/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using namespace flashmemory_test;

TEST_CASE("CUDA attention is that of the double-precision reference", "[gpu][attend]") {
  REQUIRE_GPU();
  struct dims {
    fm::dtype type;
    std::int32_t key, value;
  };
  const auto d =
      GENERATE(dims{fm::dtype::bf16, 128, 128}, dims{fm::dtype::bf16, 64, 64},
               dims{fm::dtype::bf16, 256, 256}, dims{fm::dtype::f16, 128, 128}, dims{fm::dtype::f16, 64, 64},
               dims{fm::dtype::f16, 256, 256}, dims{fm::dtype::f32, 64, 64}, dims{fm::dtype::bf16, 80, 48},
               dims{fm::dtype::f16, 32, 16}, dims{fm::dtype::f32, 256, 40});
  const auto seed = fresh_seed();
  attend_problem p(seed);
  const auto pick = [&](auto... choices) {
    const std::int64_t list[] = {std::int64_t(choices)...};
    return list[std::uniform_int_distribution<std::size_t>(0, sizeof...(choices) - 1)(p.random)];
  };
  double worst_value = 0, worst_lse = 0;
  for (int round = 0; round < 12; ++round) {
    auto& g = p.shape.geometry;
    g.layers = 2;
    g.type = d.type;
    g.key_dim = d.key;
    g.value_dim = d.value;
    g.kv_heads = std::int32_t(pick(1, 2, 4));
    g.entries_per_chunk = std::int32_t(pick(1, 7, 8, 16, 48, 64, 64, 80, 128, 200));
    p.shape.query_tokens = std::int32_t(pick(1, 1, 2, 3, 4, 8));
    p.shape.query_heads = g.kv_heads * std::int32_t(pick(1, 3, 4, 8, 16, 40));
    p.layer = std::int32_t(pick(0, 1));
    p.entries.clear();
    for (std::int64_t r = pick(1, 2, 5); r > 0; --r)
      p.entries.push_back(pick(0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 200, 333));
    p.scale = pick(0, 1) != 0 ? 0.11f : 0.0f;
    p.soft_cap = pick(0, 0, 1) != 0 ? 5.0f : 0.0f;
    p.with_sinks = pick(0, 1) != 0;
    p.spread = pick(0, 1) != 0 ? 1.0f : 4.0f;
    p.out_type = pick(0, 1) != 0 || d.type == fm::dtype::f32 ? fm::dtype::f32 : d.type;
    p.shape.rows = p.num_rows() + pick(0, 2);
    p.shape.max_chunks = g.chunks_for(333) + pick(0, 3);
    CAPTURE(seed, round, fm::to_string(d.type), d.key, d.value, g.kv_heads, g.entries_per_chunk,
            p.shape.query_heads, p.shape.query_tokens, p.entries.size(), p.scale, p.soft_cap, p.with_sinks,
            p.spread);
    p.draw();
    p.place(seed + 1);
    const auto plan = cu::plan_attend(p.shape, std::int32_t(pick(1, 16, 132)));
    CAPTURE(plan.splits, plan.chunks_per_split);
    p.make_scratch(plan);
    const device_stream stream;
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    const auto worst = compare(p);
    // An output in the 16-bit type is rounded once more.
    const double rounding = p.out_type == fm::dtype::f32 ? 0 : p.out_type == fm::dtype::bf16 ? 4e-3 : 5e-4;
    CHECK(worst.value <= tolerance_of(plan) + rounding);
    CHECK(worst.lse <= 1e-5);
    if (rounding == 0) worst_value = std::max(worst_value, worst.value);
    worst_lse = std::max(worst_lse, worst.lse);
    const auto first = p.out.get();
    REQUIRE(p.run(plan, stream) == fm::status::ok);  // on scratch that has been used
    stream.wait();
    REQUIRE(p.out.get() == first);
  }
  std::printf("%s %d/%d: largest error %.2e of the largest |v|, %.2e of lse (seed %u)\n",
              fm::to_string(d.type), d.key, d.value, worst_value, worst_lse, seed);
}

TEST_CASE("CUDA attention survives extreme logits, and shows NaN in the rows that have it", "[gpu][attend]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  const bool tensor_cores = GENERATE(true, false);
  attend_problem p(seed);
  auto& g = p.shape.geometry;
  g.layers = 1;
  g.type = fm::dtype::bf16;
  g.key_dim = 64;
  g.value_dim = tensor_cores ? 64 : 48;
  g.kv_heads = 2;
  p.shape.query_heads = 8;
  p.entries = {200, 77};
  p.shape.rows = 2;
  p.shape.max_chunks = 4;
  const auto plan = cu::plan_attend(p.shape);
  REQUIRE(plan.tensor_cores == tensor_cores);
  const device_stream stream;
  SECTION("one entry far above the others") {
    p.spread = 300;
    p.draw();
    p.place(1);
    p.make_scratch(plan);
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    CHECK(compare(p).value <= 2e-3);
  }
  SECTION("all logits equal") {
    p.draw();
    std::fill(p.queries.begin(), p.queries.end(), 0.0f);
    p.place(1);
    p.make_scratch(plan);
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    CHECK(compare(p).value <= 2e-3);
  }
  SECTION("a sink of minus infinity is none, a huge one takes everything") {
    p.with_sinks = true;
    p.draw();
    std::fill(p.sinks.begin(), p.sinks.begin() + 4, -std::numeric_limits<float>::infinity());
    std::fill(p.sinks.begin() + 4, p.sinks.end(), 500.0f);
    p.place(1);
    p.make_scratch(plan);
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    CHECK(compare(p).value <= 2e-3);
  }
  SECTION("a sink of infinity leaves zeros") {
    p.with_sinks = true;
    p.draw();
    std::fill(p.sinks.begin(), p.sinks.end(), std::numeric_limits<float>::infinity());
    p.place(1);
    p.make_scratch(plan);
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    for (const float x : p.outputs()) REQUIRE(x == 0);
    for (const float x : p.lse.get()) REQUIRE(x == std::numeric_limits<float>::infinity());
  }
  SECTION("NaN in one row's K") {
    p.draw();
    p.keys[0][std::size_t(g.key_dim * 2 * 150)] = std::numeric_limits<float>::quiet_NaN();  // KV head 0
    p.place(1);
    p.make_scratch(plan);
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    const auto out = p.outputs();
    const auto nan_heads = [&](std::int64_t row) {
      int count = 0;
      for (std::int32_t h = 0; h < 8; ++h) count += std::isnan(out[std::size_t((row * 8 + h) * g.value_dim)]);
      return count;
    };
    CHECK(nan_heads(0) == 4);
    CHECK(nan_heads(1) == 0);
  }
}

namespace {

/// One plan, made for pairs of splits joined on the chip and for three joined in memory.
void join_pairs(std::int32_t dim, std::int32_t kv_heads, std::int64_t rows, std::int32_t num_sms) {
  const auto seed = fresh_seed();
  CAPTURE(seed, dim, num_sms);
  attend_problem p(seed);
  auto& g = p.shape.geometry;
  g.layers = 1;
  g.type = fm::dtype::bf16;
  g.key_dim = g.value_dim = dim;
  g.kv_heads = kv_heads;
  g.entries_per_chunk = 8;
  p.shape.max_chunks = 20;
  p.shape.query_heads = 2 * kv_heads;
  p.shape.rows = rows;
  p.out_type = fm::dtype::f32;
  std::uniform_int_distribution<std::int64_t> length(0, 160);
  for (std::int64_t r = 0; r < p.shape.rows; ++r) p.entries.push_back(r % 7 == 0 ? r % 3 : length(p.random));
  p.draw();
  p.place(4);
  const device_stream stream;
  auto plan = cu::plan_attend(p.shape, num_sms);
  const auto run_with = [&](std::int32_t splits) {
    plan.chunks_per_split = (20 + splits - 1) / splits;
    plan.splits = splits;
    p.make_scratch(plan);
    for (int call = 0; call < 3; ++call) {
      fill(p.out.data(), 0xff, p.out.size());
      REQUIRE(p.run(plan, stream) == fm::status::ok);
    }
    stream.wait();
    const auto worst = compare(p);
    CHECK(worst.value <= tolerance_of(plan));
    CHECK(worst.lse <= 1e-5);
    return p.out.get();
  };
  const auto pairs = run_with(2);
  REQUIRE(run_with(3).size() == pairs.size());
  REQUIRE(run_with(2) == pairs);
}

}  // namespace

TEST_CASE("two splits are joined on the chip as three are in memory, over many tiles in turn",
          "[gpu][attend]") {
  REQUIRE_GPU();
  join_pairs(GENERATE(64, 128, 256), 8, 20, GENERATE(132, 3));
}

TEST_CASE("a single pair of blocks joins the splits of many tiles in turn", "[gpu][attend]") {
  REQUIRE_GPU();
  join_pairs(GENERATE(64, 128, 256), 1, 11, 1);
}
