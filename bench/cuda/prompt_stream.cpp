// SPDX-License-Identifier: MIT
// A piece of a follow-up prompt over a history that lies in host memory.
#include <chrono>
#include <flashmemory/cuda/prompt_attention.hpp>
#include <flashmemory/cuda/store.hpp>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;
using clock = std::chrono::steady_clock;

constexpr std::int32_t query_heads = 32;

/// Bytes/s of one copy of 256 MB from pinned memory: what the bus gives.
double copy_rate() {
  constexpr std::size_t all = std::size_t{256} << 20;
  void* pinned = nullptr;
  must(cudaHostAlloc(&pinned, all, cudaHostAllocDefault));
  device_block<std::byte> block(all);
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const auto begin = clock::now();
    must(cudaMemcpyAsync(block.data(), pinned, all, cudaMemcpyHostToDevice, nullptr));
    must(cudaStreamSynchronize(nullptr));
    best = std::max(best, double(all) / std::chrono::duration<double>(clock::now() - begin).count());
  }
  must(cudaFreeHost(pinned));
  return best;
}

/// `tokens` query tokens behind `history` tokens of 8 KV heads of 128 dims in `layers` layers, of which the quota holds 64
/// chunks: the time of one layer's attention, the host included.
void prompt_over_history(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t history = state.range(0), tokens = state.range(1);
  const auto layers = static_cast<std::int32_t>(state.range(2));
  const bool resident = state.range(3) != 0;
  store_options o;
  kv_geometry& g = o.geometry;
  g.layers = layers;
  g.kv_heads = 8;
  g.key_dim = g.value_dim = 128;
  const chunk_layout layout(g);
  sequence_options s;
  s.max_tokens = history + tokens;
  const std::int64_t chunks = g.chunks_for(s.max_tokens);
  s.max_resident_chunks = resident ? 0 : 64;
  o.max_sequences = 1;
  o.fast_bytes = std::size_t(resident ? chunks + 8 : 160) * (layout.chunk_bytes() + 512) +
                 std::size_t(chunks) * 4096 + (std::size_t{64} << 20);
  o.backing_bytes = std::size_t(chunks) * layout.chunk_bytes();
  std::size_t free_before = 0, free_now = 0, total = 0;
  must(cudaMemGetInfo(&free_before, &total));
  auto store = cuda::make_store(o);
  const sequence_handle sequence = store->open(s);
  cudaStream_t stream = nullptr;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const stream_ref ref(stream);
  constexpr std::int64_t piece = 8192;
  const std::int64_t widest = std::max(piece, tokens);
  device_block<std::uint16_t> kv(std::size_t(widest * g.kv_heads * g.key_dim)),
      q(std::size_t(tokens * query_heads * g.key_dim)), out(q.size());
  fill_random(kv.data(), kv.bytes(), 1);
  fill_random(q.data(), q.bytes(), 2);
  batch_item item{sequence, 0, 0};
  for (std::int64_t at = 0; at < s.max_tokens; at += item.num_tokens) {
    item.position = at;
    item.num_tokens = std::int32_t(at < history ? std::min(piece, history - at) : tokens);
    for (std::int32_t layer = 0; layer < layers; ++layer) {
      const const_tensor<3> rows(kv.data(), g.type, item.num_tokens, g.kv_heads, g.key_dim);
      must(store->append(batch(&item, 1), layer, rows, rows, ref));
    }
  }
  cuda::prompt_attention_options p;
  p.geometry = g;
  p.query_heads = query_heads;
  p.max_tokens = tokens;
  p.max_chunks = chunks;
  cuda::prompt_attention prompts(cuda::context_of(*store), p);
  attend_options options;
  options.reach = attend_reach::everything;
  const auto attend = [&](std::int32_t layer) {
    must(prompts.attend(*store, batch(&item, 1), layer,
                        const_tensor<3>(q.data(), g.type, tokens, query_heads, g.key_dim),
                        tensor<3>(out.data(), g.type, tokens, query_heads, g.key_dim), options, ref));
  };
  attend(0);
  must(cudaStreamSynchronize(stream));
  must(cudaMemGetInfo(&free_now, &total));
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) {
    const auto begin = clock::now();
    for (std::int32_t layer = 0; layer < layers; ++layer) attend(layer);
    must(cudaStreamSynchronize(stream));
    seconds.push_back(std::chrono::duration<double>(clock::now() - begin).count() / layers);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  for (auto _ : state) state.SetIterationTime(median);
  resident_set set;
  must(store->resident(sequence, 0, &set));
  const double bytes = double(chunks - set.count) * double(layout.layer_bytes());
  const double flop = 4.0 * double(tokens) * query_heads * g.key_dim * (double(history) + double(tokens) / 2);
  state.counters["us"] = median * 1e6;
  state.counters["TFLOP/s"] = flop / median * 1e-12;
  state.counters["device_GB"] = double(free_before - free_now) * 1e-9;
  state.counters["prompt_attention_GB"] = double(prompts.device_bytes()) * 1e-9;
  if (bytes > 0) {
    const double rate = copy_rate();
    state.counters["host_GB/s"] = bytes / median * 1e-9;
    state.counters["copy_GB/s"] = rate * 1e-9;
    state.counters["of_copy"] = bytes / median / rate;
  }
  store.reset();
  cudaStreamDestroy(stream);
}
BENCHMARK(prompt_over_history)
    ->Name("cuda/prompt_over_history/gqa_32_8/d128/bf16")
    ->ArgNames({"history", "tokens", "layers", "resident"})
    ->Args({131072, 512, 2, 1})
    ->Args({131072, 512, 2, 0})
    ->Args({131072, 2048, 2, 1})
    ->Args({131072, 2048, 2, 0})
    ->Args({1048576, 2048, 8, 0})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace flashmemory_bench
