// SPDX-License-Identifier: MIT
#include <benchmark/benchmark.h>

#include <cmath>

#include "bench/ceilings.hpp"
#include "tests/unit/indexer/pooled_keys_support.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

/// A refresh by pooled keys: one layer and KV head of 256 values, keys of 4 tokens in chunks of 64.
void score_pooled_keys(benchmark::State& state) {
  flashmemory_test::pooled_shape shape;
  shape.layers = shape.kv_heads = 1;
  shape.group = 4;
  shape.key_dim = 256;
  shape.keys_per_chunk = 16;
  shape.query_tokens = static_cast<std::int32_t>(state.range(0));
  shape.chunks = state.range(1) * 1024 / 16;
  shape.type = static_cast<index_key_type>(state.range(2));
  const thread_hook threads = state.range(3) == 0 ? serial_threads() : default_threads();
  flashmemory_test::pooled_problem problem(shape, 7);
  problem.build();
  std::vector<float> scores;
  if (problem.score(scores, &threads) != status::ok) return state.SkipWithError("score failed");
  const auto needs = problem.needs();
  for (std::size_t c = 0; c < needs.size(); c += needs.size() / 3)
    if (!(std::fabs(double(scores[c]) - std::log(needs[c]) + std::log1p(-needs[c])) < 2e-3))
      return state.SkipWithError("score disagrees with the reference");
  const score_request request = [&] {
    score_request r = problem.request();
    r.threads = threads;
    return r;
  }();
  for (auto _ : state)
    benchmark::DoNotOptimize(
        problem.index->score(request, view<float, 1>(scores.data(), std::int64_t(scores.size()))));
  const double keys = double(shape.chunks) * 16, rows = 4.0 * double(shape.query_tokens);
  const double flops = 2 * keys * rows * 256, bytes = keys * problem.geometry.index_keys.bytes();
  const ceilings& c = measured_ceilings();
  const bool all = threads.concurrency > 1;
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["Gflop/s"] = benchmark::Counter(flops * 1e-9, rate);
  state.counters["of_fma"] = benchmark::Counter(flops / (all ? c.fma_flops : c.fma_flops_core), rate);
  state.counters["of_read"] = benchmark::Counter(bytes / (all ? c.read_bytes : c.read_bytes_core), rate);
}
BENCHMARK(score_pooled_keys)
    ->ArgNames({"tokens", "Kkeys", "type", "threads"})
    ->ArgsProduct({{1, 8}, {2, 8}, {int(index_key_type::int8), int(index_key_type::mxfp4)}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashmemory_bench
