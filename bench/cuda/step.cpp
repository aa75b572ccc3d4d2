// SPDX-License-Identifier: MIT
#include <chrono>
#include <flashmemory/cuda/decode_step.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

/// A dual encoder of small dimensions: what is timed here does not depend on them.
dual_encoder_config small_encoder(std::int32_t hidden) {
  dual_encoder_config c;
  c.hidden = hidden;
  c.rank = 16;
  c.heads = 4;
  const auto ones = [](std::int64_t count) { return std::vector<float>(std::size_t(count), 0.01f); };
  c.retrievers.push_back({"l0", 0, 0, ones(16 * hidden), ones(16), ones(4 * 128 * 16), ones(4 * hidden),
                          ones(128 * hidden), 0.0f});
  return c;
}

/// What a step costs besides its launches: host time of prepare(), finish() and of a select_chunks() in which nothing is
/// due, with all of `chunks` chunks of 64 tokens resident in each row. The step itself is empty, so that the whole, as
/// the host sees it, is what an engine pays.
void step_books(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t rows = state.range(0), chunks = state.range(1), tokens = chunks * 64 - 600;
  store_options o;
  kv_geometry& g = o.geometry;
  g.layers = g.kv_heads = 1;
  g.key_dim = g.value_dim = 8;
  g.index_keys.lanes = 1;
  g.index_keys.layout = index_key_layout::planar;
  o.fast_bytes = o.backing_bytes = std::size_t{4} << 30;
  o.max_sequences = std::int32_t(rows);
  const auto store = cuda::make_store(o);
  selection_policy policy;
  policy.mode = selection_mode::everything;
  policy.interval = 1 << 20;
  selector_options s;
  s.max_sequences = std::int32_t(rows);
  const auto select = cuda::make_selector(*store, small_encoder(32), policy, s);
  cuda::decode_step_options d;
  d.rows = std::int32_t(rows);
  d.max_chunks = chunks;
  cuda::decode_step step(*store, select.get(), d);
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const stream_ref queue(stream);
  const device_block<std::byte> prompt(std::size_t(tokens) * 8 * 2), keys(std::size_t(tokens / 4) * 132);
  must(cudaMemset(prompt.data(), 0, prompt.bytes()));
  must(cudaMemset(keys.data(), 0, keys.bytes()));
  std::vector<batch_item> items;
  for (std::int64_t r = 0; r < rows; ++r) {
    items.push_back({store->open(sequence_options_for(policy, g, chunks * 64)), 0, std::int32_t(tokens)});
    select->attach(items.back().sequence);
    const batch one(&items.back(), 1);
    const const_tensor<3> kv(prompt.data(), g.type, tokens, 1, 8);
    must(store->append(one, 0, kv, kv, queue));
    must(store->append_index_keys(items.back().sequence, 0, 0,
                                  view<const std::byte, 2>(keys.data(), tokens / 4, 132), queue));
    must(select_chunks(*select, one, queue));
    items.back().position = tokens;
    items.back().num_tokens = 1;
  }
  must(cudaStreamSynchronize(stream));
  double prepare = 0, finish = 0, select_time = 0;
  const auto timed = [](double* sum, const auto& call) {
    const auto begin = std::chrono::steady_clock::now();
    must(call());
    *sum += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  constexpr int steps = 300, warm_up = 20;
  const std::int64_t sent = step.tables().bytes_sent();
  for (int i = 0; i < steps + warm_up; ++i) {
    if (i == warm_up) prepare = finish = select_time = 0;
    const batch batch(items.data(), rows);
    timed(&prepare, [&] { return step.prepare(batch, queue); });
    timed(&finish, [&] { return step.finish(queue); });
    timed(&select_time, [&] { return select_chunks(*select, batch, queue); });
    for (auto& item : items) ++item.position;
    must(cudaStreamSynchronize(stream));
  }
  for (auto _ : state) state.SetIterationTime((prepare + finish + select_time) / steps);
  state.counters["prepare_us"] = prepare / steps * 1e6;
  state.counters["finish_us"] = finish / steps * 1e6;
  state.counters["select_us"] = select_time / steps * 1e6;
  state.counters["bytes_sent"] = double(step.tables().bytes_sent() - sent) / (steps + warm_up);
  for (const auto& item : items) {
    select->detach(item.sequence);
    must(store->close(item.sequence));
  }
  must(cudaStreamDestroy(stream));
}
BENCHMARK(step_books)
    ->Name("cuda/step_books")
    ->ArgNames({"rows", "chunks"})
    ->Args({1, 64})
    ->Args({8, 512})
    ->Args({64, 64})
    ->Args({64, 512})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace flashmemory_bench
