// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/prompt_attend.hpp>
#include <numeric>
#include <random>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

/// Attention of `prompts` items of `tokens` tokens each behind `history` tokens, and of `decoding` rows of one token behind as
/// many, 32 query heads over 8 KV heads, bf16, in `parts` calls that each have a part of the lists. Chunks lie in random order. Peers on the same card:
/// FlashAttention-3 with a causal mask over contiguous K and V.
void attend_prompt(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t prompts = state.range(0), tokens = state.range(1), history = state.range(2),
                     dim = state.range(3), parts = state.range(4), decoding = state.range(5);
  const std::int64_t items = prompts + decoding, all = prompts * tokens + decoding;
  cuda::prompt_shape shape;
  auto& g = shape.geometry;
  g.layers = 1;
  g.kv_heads = 8;
  g.key_dim = g.value_dim = static_cast<std::int32_t>(dim);
  g.type = dtype::bf16;
  shape.query_heads = 32;
  shape.max_items = items;
  shape.max_tokens = all;
  shape.max_chunks = g.chunks_for(history + tokens);
  const auto plan = cuda::plan_prompt(shape);
  const std::size_t chunk_bytes = chunk_layout(g).chunk_bytes();
  const std::int64_t chunks = shape.max_chunks;

  device_block<std::byte> pool(std::size_t(items * chunks) * chunk_bytes);
  fill_random(pool.data(), pool.bytes(), 3);
  std::vector<std::size_t> order(std::size_t(items * chunks));
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(5));
  std::vector<const std::byte*> table;
  for (const std::size_t slot : order) table.push_back(pool.data() + slot * chunk_bytes);
  std::vector<chunk_id> ids(static_cast<std::size_t>(chunks));
  std::iota(ids.begin(), ids.end(), chunk_id{0});
  const device_block<const std::byte*> tables(table);
  const device_block<chunk_id> device_ids(ids);
  std::vector<device_block<cuda::prompt_row>> rows;
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t begin = chunks * part / parts, end = chunks * (part + 1) / parts;
    std::vector<cuda::prompt_row> list;
    for (std::int64_t i = 0; i < items; ++i) {
      cuda::prompt_row row;
      row.chunks = tables.data() + i * chunks + begin;
      row.ids = device_ids.data() + begin;
      row.count = end - begin;
      row.tokens = i < prompts ? static_cast<std::int32_t>(tokens) : 1;
      row.entries = history + row.tokens;
      row.position = history;
      row.first_token = i < prompts ? i * tokens : prompts * tokens + i - prompts;
      list.push_back(row);
    }
    rows.emplace_back(list);
  }
  device_block<std::byte> q(std::size_t(all * 32 * dim) * 2), out(std::size_t(all * 32 * dim) * 2);
  fill_random(q.data(), q.bytes(), 4);
  device_block<std::byte> states(cuda::prompt_state_bytes(plan));
  const device_block<std::uint32_t> counters(std::vector<std::uint32_t>(cuda::attend_counters, 0));
  cuda::prompt_options options;
  options.state = {states.data(), states.bytes()};
  options.counters = counters.data();

  const double seen =
      double(prompts) * (double(tokens) * double(history) + 0.5 * double(tokens) * double(tokens + 1)) +
      double(decoding) * double(history + 1);
  const double flop = 4.0 * 32 * double(dim) * seen;
  const int calls = std::max(1, std::min(10, static_cast<int>(4e-3 / (flop / 5e14))));
  const double seconds = seconds_per_call(calls, [&](int, stream_ref stream) {
    for (std::int64_t part = 0; part < parts; ++part) {
      options.first = part == 0;
      options.last = part == parts - 1;
      must(cuda::prompt_attend(plan, view<const cuda::prompt_row, 1>(rows[std::size_t(part)].data(), items),
                               0, const_tensor<3>(q.data(), g.type, all, 32, dim),
                               tensor<3>(out.data(), g.type, all, 32, dim), options, stream));
    }
  });
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["us"] = seconds * 1e6;
  state.counters["TFLOP/s"] = flop / seconds * 1e-12;
  state.counters["ranges"] = plan.ranges;
}

void args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"prompts", "tokens", "history", "dim", "parts", "decoding"})
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
  b->Args({1, 512, 32768, 128, 1, 0})->Args({1, 512, 131072, 128, 1, 0})->Args({1, 2048, 131072, 128, 1, 0});
  b->Args({1, 2048, 131072, 128, 16, 0})->Args({1, 8192, 0, 128, 1, 0})->Args({8, 64, 32768, 128, 1, 0});
  b->Args({1, 28, 1048576, 128, 1, 0})->Args({0, 1, 32768, 128, 1, 56})->Args({8, 64, 32768, 128, 1, 56});
  b->Args({1, 512, 32768, 64, 1, 0})->Args({1, 512, 32768, 256, 1, 0});
}
BENCHMARK(attend_prompt)->Name("cuda/attend_prompt")->Apply(args);

}  // namespace
}  // namespace flashmemory_bench
