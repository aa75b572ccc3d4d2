// SPDX-License-Identifier: MIT
#include "tests/cuda/prompt_problem.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using namespace flashmemory_test;

namespace {

prompt_problem small_problem(std::uint32_t seed, fm::dtype type) {
  prompt_problem p(seed);
  auto& g = p.shape.geometry;
  g.layers = 1;
  g.type = type;
  g.key_dim = g.value_dim = 128;
  g.kv_heads = 2;
  p.shape.query_heads = 8;
  p.shape.max_items = 4;
  p.shape.max_tokens = 300;
  p.shape.max_chunks = 32;  // so few that nothing is cut into ranges
  p.items = {{900, 200}, {300, 1}, {0, 70}, {64, 28}};
  return p;
}

/// Rows [first, first + count) of an output.
std::vector<std::byte> rows_of(const prompt_problem& p, const std::vector<std::byte>& out, std::int64_t first,
                               std::int64_t count) {
  const std::ptrdiff_t each = std::ptrdiff_t(out.size()) / p.tokens();
  return {out.begin() + first * each, out.begin() + (first + count) * each};
}

}  // namespace

TEST_CASE("CUDA attention of prompts gives the same bytes wherever the chunks lie", "[gpu][prompt]") {
  REQUIRE_GPU();
  const auto type = GENERATE(fm::dtype::bf16, fm::dtype::f16, fm::dtype::f32);
  const auto seed = fresh_seed();
  CAPTURE(seed, fm::to_string(type));
  auto p = small_problem(seed, type);
  p.draw();
  const auto plan = cu::plan_prompt(p.shape);
  p.make_state(plan);
  const device_stream stream;
  std::vector<std::byte> first;
  for (std::uint32_t order = 0; order < 4; ++order) {
    p.place(order);
    const auto out = p.result(plan, stream);
    if (order == 0) first = out;
    REQUIRE(out == first);
    for (const std::uint32_t word : p.counters.get()) REQUIRE(word == 0);
  }
}

TEST_CASE("under one plan an item's bytes do not depend on what else is in the batch", "[gpu][prompt]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  const bool few = GENERATE(false, true);
  auto p = small_problem(seed, fm::dtype::bf16);
  if (few) {
    p.items = {{6000, 9}, {300, 1}, {0, 7}, {9000, 5}};
    p.shape.max_tokens = 22;
    p.shape.max_chunks = 256;
  }
  p.draw();
  const auto plan = cu::plan_prompt(p.shape);
  REQUIRE((plan.ranges > 1) == few);
  p.place(1);
  p.make_state(plan);
  const device_stream stream;
  const auto together = p.result(plan, stream);
  CHECK(p.compare().value <= 2e-3);
  std::int64_t first = 0;
  for (std::size_t i = 0; i < p.items.size(); first += p.items[i].tokens, ++i) {
    auto alone = small_problem(seed, fm::dtype::bf16);
    alone.items = {p.items[i]};
    alone.keys = {p.keys[i]};
    alone.values = {p.values[i]};
    alone.listed = {p.listed[i]};
    alone.sinks = p.sinks;
    const std::int64_t width = std::int64_t(p.queries.size()) / p.tokens();
    alone.queries.assign(p.queries.begin() + first * width,
                         p.queries.begin() + (first + p.items[i].tokens) * width);
    alone.place(2);
    alone.make_state(plan);
    CHECK(alone.result(plan, stream) == rows_of(p, together, first, p.items[i].tokens));
  }
}

TEST_CASE("a captured call of prompts reads its items anew", "[gpu][prompt]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  auto p = small_problem(seed, GENERATE(fm::dtype::bf16, fm::dtype::f32));
  p.draw();
  p.place(3);
  const auto plan = cu::plan_prompt(p.shape);
  p.make_state(plan);
  const device_stream stream;
  cudaGraph_t graph;
  cudaGraphExec_t program;
  must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  REQUIRE(p.run(plan, p.rows, true, true, stream) == fm::status::ok);
  must(cudaStreamEndCapture(stream.get(), &graph));
  must(cudaGraphInstantiate(&program, graph, 0));
  const auto whole = p.host_rows;
  for (int step = 0; step < repeats(20, 3); ++step) {
    auto some = whole;
    for (auto& row : some) {
      row.count = std::uniform_int_distribution<std::int64_t>(0, row.count)(p.random);
      if (row.tokens > 1) row.tokens = std::uniform_int_distribution<std::int32_t>(1, row.tokens)(p.random);
    }
    p.rows.put(some);
    fill(p.out.data(), 0xff, p.out.bytes());
    must(cudaGraphLaunch(program, stream.get()));
    stream.wait();
    const auto captured = p.out.get();
    CAPTURE(step);
    REQUIRE(p.result(plan, stream) == captured);
  }
  must(cudaGraphExecDestroy(program));
  must(cudaGraphDestroy(graph));
}

TEST_CASE("a part that is not the last one leaves the output alone", "[gpu][prompt]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  auto p = small_problem(seed, fm::dtype::bf16);
  p.draw();
  p.place(3);
  const auto plan = cu::plan_prompt(p.shape);
  p.make_state(plan);
  const device_stream stream;
  const auto before = p.out.get();
  REQUIRE(p.run(plan, p.rows, true, false, stream) == fm::status::ok);
  stream.wait();
  CHECK(p.out.get() == before);
  for (auto& row : p.host_rows) row.count = 0;
  const device_array<cu::prompt_row> nothing(p.host_rows);
  REQUIRE(p.run(plan, nothing, false, true, stream) == fm::status::ok);
  stream.wait();
  const auto parts = p.out.get();
  CHECK(p.result(plan, stream) == parts);
}
