// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/attend.hpp>
#include <numeric>
#include <random>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

/// Decode attention of `rows` sequences over `chunks` resident chunks each; as many layers as make 300 MB, read in
/// turn, so that nothing comes from the L2 cache. Chunks lie in random order.
void attend_gqa(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t rows = state.range(0), dim = state.range(1), chunks = state.range(2),
                     tokens = state.range(3);
  cuda::attend_shape shape;
  auto& g = shape.geometry;
  g.kv_heads = 8;
  g.key_dim = g.value_dim = static_cast<std::int32_t>(dim);
  g.type = dtype::bf16;
  g.layers = 1;
  const double bytes = double(rows * chunks) * double(chunk_layout(g).chunk_bytes());
  g.layers = static_cast<std::int32_t>(std::max(1.0, std::ceil(300e6 / bytes)));
  shape.query_heads = 32;
  shape.query_tokens = static_cast<std::int32_t>(tokens);
  shape.rows = rows;
  shape.max_chunks = chunks;
  auto plan = cuda::plan_attend(shape);
  if (const char* forced = std::getenv("SPLIT")) {
    plan.chunks_per_split = std::max(1, std::atoi(forced));
    plan.splits = static_cast<std::int32_t>((chunks + plan.chunks_per_split - 1) / plan.chunks_per_split);
  }
  const std::size_t chunk_bytes = chunk_layout(g).chunk_bytes();

  device_block<std::byte> pool(std::size_t(rows * chunks) * chunk_bytes);
  fill_random(pool.data(), pool.bytes(), 3);
  std::vector<std::size_t> order(std::size_t(rows * chunks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(5));
  std::vector<const std::byte*> table;
  for (const std::size_t slot : order) table.push_back(pool.data() + slot * chunk_bytes);
  const device_block<const std::byte*> tables(table);
  std::vector<cuda::chunk_row> row_table;
  for (std::int64_t r = 0; r < rows; ++r)
    row_table.push_back({tables.data() + r * chunks, chunks * g.entries_per_chunk});
  const device_block<cuda::chunk_row> device_rows(row_table);
  const std::int64_t elements = rows * tokens * shape.query_heads * dim;
  device_block<std::byte> q(std::size_t(elements) * 2), out(std::size_t(elements) * 2);
  fill_random(q.data(), q.bytes(), 4);
  device_block<std::byte> scratch(cuda::attend_workspace_bytes(plan));
  const device_block<std::uint32_t> counters(std::vector<std::uint32_t>(cuda::attend_counters, 0));
  flashmemory::attend_options options;
  options.scratch = {scratch.data(), scratch.bytes()};
  options.counters = counters.data();

  const int calls = std::max(g.layers, std::min(200, static_cast<int>(2e-3 / (bytes / 4e12 + 5e-6))));
  const double seconds = seconds_per_call(calls, [&](int i, stream_ref stream) {
    must(cuda::sparse_attend(plan, view<const cuda::chunk_row, 1>(device_rows.data(), rows), i % g.layers,
                             const_tensor<3>(q.data(), g.type, rows * tokens, 32, dim),
                             tensor<3>(out.data(), g.type, rows * tokens, 32, dim), options, stream));
  });
  state.counters["splits"] = plan.splits;
  report(state, seconds, bytes);
}

void args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "dim", "chunks", "tokens"})
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
  for (const int dim : {128, 64, 256})
    for (const int rows : {1, 8, 32, 64}) b->Args({rows, dim, 64, 1});
  b->Args({1, 128, 512, 1})->Args({16, 128, 64, 1})->Args({4, 128, 64, 1})->Args({8, 128, 64, 4});
}
BENCHMARK(attend_gqa)->Name("cuda/attend_gqa")->Apply(args);

}  // namespace
}  // namespace flashmemory_bench
