// SPDX-License-Identifier: MIT
#include "tests/cuda/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using namespace flashmemory_test;

namespace {

attend_problem small_problem(std::uint32_t seed, fm::dtype type) {
  attend_problem p(seed);
  auto& g = p.shape.geometry;
  g.layers = 1;
  g.type = type;
  g.key_dim = g.value_dim = 64;
  g.kv_heads = 2;
  g.entries_per_chunk = 16;
  p.shape.query_heads = 8;
  p.shape.rows = 4;
  p.shape.max_chunks = 32;
  return p;
}

std::vector<std::byte> row_of(const attend_problem& p, const std::vector<std::byte>& out, std::int64_t row) {
  const std::size_t bytes = out.size() / std::size_t(p.num_rows());
  return {out.begin() + std::ptrdiff_t(std::size_t(row) * bytes),
          out.begin() + std::ptrdiff_t(std::size_t(row + 1) * bytes)};
}

}  // namespace

TEST_CASE("CUDA attention gives the same bytes wherever the chunks lie", "[gpu][attend]") {
  REQUIRE_GPU();
  const auto type = GENERATE(fm::dtype::bf16, fm::dtype::f16, fm::dtype::f32);
  const auto seed = fresh_seed();
  CAPTURE(seed, fm::to_string(type));
  auto p = small_problem(seed, type);
  p.entries = {500, 3, 0, 257};
  p.draw();
  const auto plan = cu::plan_attend(p.shape);
  REQUIRE(plan.splits > 1);
  const device_stream stream;
  std::vector<std::byte> first;
  for (std::uint32_t order = 0; order < 5; ++order) {
    p.place(order);
    p.make_scratch(plan);
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    if (order == 0) first = p.out.get();
    REQUIRE(p.out.get() == first);
  }
}

TEST_CASE("under one plan CUDA attention does not depend on what else is in the batch", "[gpu][attend]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  auto p = small_problem(seed, fm::dtype::bf16);
  p.entries = {500, 40, 512, 257};
  p.draw();
  const auto plan = cu::plan_attend(p.shape);
  const device_stream stream;
  p.place(1);
  p.make_scratch(plan);
  REQUIRE(p.run(plan, stream) == fm::status::ok);
  stream.wait();
  const auto together = p.out.get();
  for (std::int64_t row = 0; row < 4; ++row) {
    auto alone = small_problem(seed, fm::dtype::bf16);
    alone.entries = {p.entries[std::size_t(row)]};
    alone.keys = {p.keys[std::size_t(row)]};
    alone.values = {p.values[std::size_t(row)]};
    alone.sinks = p.sinks;
    const auto width = std::ptrdiff_t(p.queries.size() / 4);
    alone.queries.assign(p.queries.begin() + row * width, p.queries.begin() + (row + 1) * width);
    alone.place(2);
    alone.make_scratch(plan);
    REQUIRE(alone.run(plan, stream) == fm::status::ok);
    stream.wait();
    CHECK(alone.out.get() == row_of(p, together, row));
  }
}

TEST_CASE("a captured call reads the rows anew: its bytes are those of eager calls", "[gpu][attend]") {
  REQUIRE_GPU();
  const auto type = GENERATE(fm::dtype::bf16, fm::dtype::f32);
  const auto seed = fresh_seed();
  CAPTURE(seed, fm::to_string(type));
  auto p = small_problem(seed, type);
  p.entries = {512, 512, 512, 512};
  p.draw();
  p.place(3);
  const auto plan = cu::plan_attend(p.shape);
  p.make_scratch(plan);
  const device_stream stream;
  cudaGraph_t graph;
  cudaGraphExec_t program;
  must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  REQUIRE(p.run(plan, stream) == fm::status::ok);
  must(cudaStreamEndCapture(stream.get(), &graph));
  must(cudaGraphInstantiate(&program, graph, 0));
  auto table = p.rows.get();
  for (int step = 0; step < 200; ++step) {
    for (auto& row : table) row.entries = std::uniform_int_distribution<std::int64_t>(0, 512)(p.random);
    p.rows.put(table);
    fill(p.out.data(), 0xff, p.out.size());
    must(cudaGraphLaunch(program, stream.get()));
    stream.wait();
    const auto captured = p.out.get();
    fill(p.out.data(), 0xff, p.out.size());
    REQUIRE(p.run(plan, stream) == fm::status::ok);
    stream.wait();
    CAPTURE(step);
    REQUIRE(p.out.get() == captured);
  }
  must(cudaGraphExecDestroy(program));
  must(cudaGraphDestroy(graph));
}
