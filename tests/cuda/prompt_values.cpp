// SPDX-License-Identifier: MIT
#include "tests/cuda/prompt_problem.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using namespace flashmemory_test;

TEST_CASE("CUDA attention of prompts is that of the double-precision reference, and the same in parts",
          "[gpu][prompt]") {
  REQUIRE_GPU();
  struct dims {
    fm::dtype type;
    std::int32_t key, value;
  };
  const auto d = GENERATE(
      dims{fm::dtype::bf16, 128, 128}, dims{fm::dtype::bf16, 64, 64}, dims{fm::dtype::bf16, 256, 256},
      dims{fm::dtype::f16, 128, 128}, dims{fm::dtype::f16, 64, 64}, dims{fm::dtype::f16, 256, 256},
      dims{fm::dtype::f32, 64, 64}, dims{fm::dtype::bf16, 80, 48}, dims{fm::dtype::f16, 32, 16});
  const auto seed = fresh_seed();
  prompt_problem p(seed);
  const auto pick = [&](auto... choices) {
    const std::int64_t list[] = {std::int64_t(choices)...};
    return list[std::uniform_int_distribution<std::size_t>(0, sizeof...(choices) - 1)(p.random)];
  };
  double worst_value = 0, worst_lse = 0;
  for (int round = 0; round < repeats(6, 2); ++round) {
    auto& g = p.shape.geometry;
    g.layers = 2;
    g.type = d.type;
    g.key_dim = d.key;
    g.value_dim = d.value;
    g.kv_heads = std::int32_t(pick(1, 2));
    g.entries_per_chunk = std::int32_t(pick(1, 7, 16, 32, 64, 64, 64, 80, 128, 256));
    p.shape.query_heads = g.kv_heads * std::int32_t(pick(1, 3, 4, 8));
    p.layer = std::int32_t(pick(0, 1));
    p.items.clear();
    for (std::int64_t n = pick(1, 2, 4); n > 0; --n) {
      prompt_item item;
      item.position = pick(0, 0, 1, 63, 64, 65, 127, 200, 500);
      item.tokens = std::int32_t(pick(0, 1, 2, 31, 32, 33, 64, 130));
      if (pick(0, 0, 1) != 0) item.entries = pick(0, item.position, item.position + item.tokens + 3);
      p.items.push_back(item);
    }
    p.kept = pick(0, 1) != 0 ? 1.0 : 0.5;
    p.scale = pick(0, 1) != 0 ? 0.11f : 0.0f;
    p.soft_cap = pick(0, 0, 1) != 0 ? 5.0f : 0.0f;
    p.with_sinks = pick(0, 1) != 0;
    p.spread = pick(0, 1) != 0 ? 1.0f : 4.0f;
    p.out_type = pick(0, 1) != 0 || d.type == fm::dtype::f32 ? fm::dtype::f32 : d.type;
    p.shape.max_items = std::int64_t(p.items.size()) + pick(0, 2);
    p.shape.max_tokens = std::max<std::int64_t>(p.tokens() + pick(0, 5), 1);
    p.shape.max_chunks = g.chunks_for(640);
    CAPTURE(seed, round, fm::to_string(d.type), d.key, d.value, g.kv_heads, g.entries_per_chunk,
            p.shape.query_heads, p.items.size(), p.scale, p.soft_cap, p.with_sinks, p.spread, p.kept);
    p.draw();
    p.place(seed + 1);
    auto plan = cu::plan_prompt(p.shape, std::int32_t(pick(1, 16, 132)));
    if (pick(0, 1) != 0) {  // ranges, which a plan has for long histories only
      plan.ranges = std::int32_t(std::min<std::int64_t>(pick(2, 3, 7), p.shape.max_chunks));
      plan.chunks_per_range = (p.shape.max_chunks + plan.ranges - 1) / plan.ranges;
    }
    CAPTURE(plan.ranges, plan.chunks_per_range, plan.num_sms, plan.tensor_cores);
    p.make_state(plan);
    const device_stream stream;
    const auto whole = p.result(plan, stream);
    const auto worst = p.compare();
    // An output in the 16-bit type is rounded once more.
    const double rounding = p.out_type == fm::dtype::f32 ? 0 : p.out_type == fm::dtype::bf16 ? 4e-3 : 5e-4;
    CHECK(worst.value <= tolerance_of(plan) + rounding);
    CHECK(worst.lse <= 1e-5);
    if (rounding == 0) worst_value = std::max(worst_value, worst.value);
    worst_lse = std::max(worst_lse, worst.lse);
    for (const int parts : {2, 3, 6}) CHECK(p.result_in_parts(plan, parts, stream) == whole);
    CHECK(p.result(plan, stream) == whole);  // on counters and states that have been used
  }
  std::printf("prompts, %s %d/%d: largest error %.2e of the largest |v|, %.2e of lse (seed %u)\n",
              fm::to_string(d.type), d.key, d.value, worst_value, worst_lse, seed);
}

TEST_CASE("CUDA attention of prompts survives extreme logits, and shows NaN in the rows that have it",
          "[gpu][prompt]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  const bool tensor_cores = GENERATE(true, false);
  prompt_problem p(seed);
  auto& g = p.shape.geometry;
  g.layers = 1;
  g.type = fm::dtype::bf16;
  g.key_dim = 64;
  g.value_dim = tensor_cores ? 64 : 48;
  g.kv_heads = 2;
  p.shape.query_heads = 8;
  p.items = {{150, 50}, {0, 77}};
  p.shape.max_items = 2;
  p.shape.max_tokens = 127;
  p.shape.max_chunks = 8;
  const auto plan = cu::plan_prompt(p.shape);
  const device_stream stream;
  p.make_state(plan);
  SECTION("entries far above the others, in no order") {
    p.spread = 300;
    p.draw();
    p.place(1);
    p.result(plan, stream);
    CHECK(p.compare().value <= 2e-3);
  }
  SECTION("all logits equal") {
    p.draw();
    std::fill(p.queries.begin(), p.queries.end(), 0.0f);
    p.place(1);
    p.result(plan, stream);
    CHECK(p.compare().value <= 2e-3);
  }
  SECTION("a sink of infinity leaves zeros") {
    p.with_sinks = true;
    p.draw();
    std::fill(p.sinks.begin(), p.sinks.end(), std::numeric_limits<float>::infinity());
    p.place(1);
    for (const std::byte x : p.result(plan, stream)) REQUIRE((x == std::byte{0} || x == std::byte{0x80}));
    for (const float x : p.lse.get()) REQUIRE(x == std::numeric_limits<float>::infinity());
  }
  SECTION("NaN in one item's K") {
    p.draw();
    p.keys[0][std::size_t(g.key_dim * 2 * 100)] = std::numeric_limits<float>::quiet_NaN();  // KV head 0
    p.place(1);
    const auto out = p.result(plan, stream);
    std::int64_t nans = 0;
    for (std::int64_t row = 0; row < p.tokens(); ++row)
      for (std::int32_t h = 0; h < 8; ++h) {
        const float x = load_as(fm::dtype::f32, out.data() + std::size_t((row * 8 + h) * g.value_dim) * 4);
        CHECK(std::isnan(x) == (row < 50 && h < 4));
        nans += std::isnan(x);
      }
    CHECK(nans == 200);
  }
}
