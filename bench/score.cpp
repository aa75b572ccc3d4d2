// SPDX-License-Identifier: MIT
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <memory>
#include <random>
#include <vector>

#include "bench/ceilings.hpp"
#include "tests/reference/indexer.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

/// Values between 1/8 and 2 of either sign, times `scale`.
std::vector<float> random_floats(std::size_t count, std::uint64_t seed, float scale) {
  std::mt19937_64 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    const std::uint64_t r = random();
    const auto bits = std::uint32_t(r >> 50 & 1u) << 31 | std::uint32_t(124 + (r >> 40 & 3u)) << 23 |
                      std::uint32_t(r & 0x7fffffu);
    std::memcpy(&value, &bits, sizeof value);
    value *= scale;
  }
  return values;
}

dual_encoder_config config_of(std::int32_t hidden, std::int32_t rank, std::int32_t heads, bool with_keys) {
  dual_encoder_config config;
  config.hidden = hidden;
  config.rank = rank;
  config.heads = heads;
  config.rope.dim = 64;
  config.key_window = 16;
  retriever_weights weights;
  weights.name = "l0";
  const auto matrix = [](std::int64_t rows, std::int64_t columns) {
    return random_floats(std::size_t(rows * columns), std::uint64_t(rows), 1 / std::sqrt(float(columns)));
  };
  weights.wq_a = matrix(rank, hidden);
  weights.q_norm.assign(std::size_t(rank), 1.0f);
  weights.wq_b = matrix(std::int64_t{heads} * index_key_dim, rank);
  weights.weights_proj = matrix(heads, hidden);
  if (with_keys) weights.wk = matrix(index_key_dim, hidden);
  config.retrievers.push_back(std::move(weights));
  return config;
}

std::vector<std::byte> random_keys(std::size_t count) {
  const auto values = random_floats(count * index_key_dim, 17, 1);
  std::vector<std::byte> keys(count * 132);
  for (std::size_t i = 0; i < count; ++i) quantise_key(&values[i * index_key_dim], &keys[i * 132], 1e-4f);
  return keys;
}

void report(benchmark::State& state, const thread_hook& threads, double flops, double bytes) {
  const ceilings& c = measured_ceilings();
  const bool all = threads.concurrency > 1;
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["Gflop/s"] = benchmark::Counter(flops * 1e-9, rate);
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, rate);
  state.counters["of_fma"] = benchmark::Counter(flops / (all ? c.fma_flops : c.fma_flops_core), rate);
  state.counters["of_read"] = benchmark::Counter(bytes / (all ? c.read_bytes : c.read_bytes_core), rate);
}

thread_hook threads_of(const benchmark::State& state, int argument) {
  return state.range(argument) == 0 ? serial_threads() : default_threads();
}

/// Level 1's scan: all keys of a sequence against one retriever's query.
void score_keys(benchmark::State& state) {
  const auto heads = static_cast<std::int32_t>(state.range(0));
  const std::int64_t count = state.range(1) * 1024;
  const thread_hook threads = threads_of(state, 2);
  const auto layout = state.range(3) == 0 ? index_key_layout::interleaved : index_key_layout::planar;
  const dual_encoder_indexer index(config_of(32, 16, heads, false));
  const auto queries = random_floats(std::size_t(heads) * index_key_dim, 3, 1);
  const auto gates = random_floats(std::size_t(heads), 5, 0.1f);
  const auto rows = random_keys(std::size_t(count));
  std::vector<std::byte> keys(rows.size());
  const std::int64_t page = 16;
  for (std::size_t at = 0; at < rows.size(); at += std::size_t(page) * 132) {
    if (layout == index_key_layout::planar) {
      repack_keys(&rows[at], &keys[at], page, page, 132, true);
    } else {
      std::memcpy(&keys[at], &rows[at], std::size_t(page) * 132);
    }
  }
  std::vector<float> logits(static_cast<std::size_t>(count));
  const auto run = [&] {
    return index.score_keys(0, queries.data(), gates.data(), keys.data(), count, page, layout, logits.data(),
                            threads);
  };
  reference::encoded_query query;
  for (std::int32_t h = 0; h < heads; ++h) {
    const auto from = queries.begin() + std::ptrdiff_t{h} * index_key_dim;
    query.heads.emplace_back(from, from + index_key_dim);
    query.gates.push_back(double(gates[std::size_t(h)]));
  }
  if (run() != status::ok) return state.SkipWithError("score_keys failed");
  for (std::int64_t key : {std::int64_t{0}, count / 3, count - 1}) {
    const double want = reference::key_logit(query, &rows[std::size_t(key) * 132], 0);
    if (!(std::fabs(double(logits[std::size_t(key)]) - want) <= 1e-4 * heads)) {
      return state.SkipWithError("score_keys disagrees with the reference");
    }
  }
  for (auto _ : state) benchmark::DoNotOptimize(run());
  report(state, threads, 2.0 * heads * index_key_dim * double(count), 132.0 * double(count));
}
BENCHMARK(score_keys)
    ->ArgNames({"heads", "Kkeys", "threads", "planar"})
    ->ArgsProduct({{8, 64, 128}, {16, 64}, {0, 1}, {0}})
    ->Args({64, 256, 1, 0})
    ->Args({8, 64, 0, 1})
    ->Args({64, 64, 0, 1})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// The query side for one retriever; reads every weight once, so memory is the ceiling.
void encode_query(benchmark::State& state) {
  const auto hidden = static_cast<std::int32_t>(state.range(0));
  const auto rank = static_cast<std::int32_t>(state.range(1));
  const auto heads = static_cast<std::int32_t>(state.range(2));
  const dual_encoder_config config = config_of(hidden, rank, heads, false);
  const dual_encoder_indexer index(config);
  const auto x = random_floats(std::size_t(hidden), 7, 1);
  std::vector<float> queries(std::size_t(heads) * index_key_dim), gates(static_cast<std::size_t>(heads));
  const std::size_t bytes = index.workspace_bytes({}, 0, 0);
  const std::unique_ptr<std::byte[]> memory(new std::byte[bytes + 64]);
  void* at = memory.get();
  std::size_t room = bytes + 64;
  const workspace scratch{std::align(64, bytes, at, room), bytes};
  const auto run = [&] {
    return index.encode_query(0, x.data(), 1000, queries.data(), gates.data(), scratch);
  };
  if (run() != status::ok) return state.SkipWithError("encode_query failed");
  const auto want = reference::encode_query(config, config.retrievers[0], x, 1000);
  for (std::int32_t h = 0; h < heads; ++h) {
    if (!(std::fabs(double(gates[std::size_t(h)]) - want.gates[std::size_t(h)]) <= 1e-4)) {
      return state.SkipWithError("encode_query disagrees with the reference");
    }
    for (std::int32_t d = 0; d < index_key_dim; ++d) {
      const auto got = double(queries[std::size_t(h * index_key_dim + d)]);
      if (!(std::fabs(got - want.heads[std::size_t(h)][std::size_t(d)]) <= 0.05)) {  // bf16 may flip
        return state.SkipWithError("encode_query disagrees with the reference");
      }
    }
  }
  for (auto _ : state) benchmark::DoNotOptimize(run());
  const double weights =
      double(rank) * hidden + double(heads) * index_key_dim * rank + double(heads) * hidden;
  report(state, serial_threads(), 2 * weights, 4 * weights);
}
BENCHMARK(encode_query)
    ->ArgNames({"hidden", "rank", "heads"})
    ->Args({256, 256, 8})
    ->Args({4096, 1024, 64})
    ->Args({4096, 2048, 128})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// The key side for a whole prompt; a key sees 16 tokens.
void encode_index_keys(benchmark::State& state) {
  const auto hidden = static_cast<std::int32_t>(state.range(0));
  const std::int64_t tokens = state.range(1) * 1024;
  const thread_hook threads = threads_of(state, 2);
  const dual_encoder_config config = config_of(hidden, 16, 1, true);
  const dual_encoder_indexer index(config);
  const std::int64_t count = tokens / config.tokens_per_key;
  const auto rows = random_floats(std::size_t((tokens + 12) * hidden), 9, 1);
  std::vector<std::byte> keys(std::size_t(count) * 132);
  const auto run = [&] {
    return index.encode_index_keys(0, view<const float, 2>(rows.data(), tokens + 12, hidden),
                                   view<std::byte, 2>(keys.data(), count, 132), {}, threads);
  };
  if (run() != status::ok) return state.SkipWithError("encode_index_keys failed");
  const std::int64_t probe = count - 1;
  const auto want = reference::key_vector(config.retrievers[0].wk, &rows[std::size_t(probe * 4 * hidden)],
                                          config.key_window, hidden);
  for (std::size_t d = 0; d < 128; ++d) {
    const std::byte* key = &keys[std::size_t(probe) * 132];
    float scale;
    std::memcpy(&scale, key + 128, sizeof scale);
    const double got = double(from_e4m3(std::uint8_t(key[d]))) * double(scale);
    if (!(std::fabs(got - want[d]) <= 0.07 * std::fabs(want[d]) + 2 * double(scale))) {
      return state.SkipWithError("encode_index_keys disagrees with the reference");
    }
  }
  for (auto _ : state) benchmark::DoNotOptimize(run());
  state.counters["Mkeys/s"] =
      benchmark::Counter(double(count) * 1e-6, benchmark::Counter::kIsIterationInvariantRate);
  report(state, threads, double(count) * hidden * (2.0 * index_key_dim + config.key_window),
         double(tokens) * hidden * 4);
}
BENCHMARK(encode_index_keys)
    ->ArgNames({"hidden", "Ktokens", "threads"})
    ->ArgsProduct({{256, 4096}, {4, 16}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashmemory_bench
