// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/deepseek_v4.hpp>
#include <random>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;
namespace v4 = cuda::deepseek_v4;

/// A pool in device memory with random entries everywhere.
class pages {
 public:
  pages(std::int32_t per_page, std::int64_t count)
      : memory_(static_cast<std::size_t>(v4::page_bytes(per_page) * count)) {
    pool.pages = memory_.data();
    pool.page_stride = v4::page_bytes(per_page);
    pool.num_pages = count;
    pool.entries_per_page = per_page;
    const std::int32_t step = 16384, total = static_cast<std::int32_t>(per_page * count);
    const device_block<std::byte> values(std::size_t{step} * v4::entry_dim * 2);
    fill_random(values.data(), values.bytes(), 5);
    for (std::int32_t first = 0; first < total; first += step) {
      std::vector<std::int32_t> places(static_cast<std::size_t>(std::min(step, total - first)));
      for (std::size_t i = 0; i < places.size(); ++i) places[i] = first + static_cast<std::int32_t>(i);
      const device_block<std::int32_t> device_places(places);
      const auto n = static_cast<std::int64_t>(places.size());
      must(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::bf16, n, v4::entry_dim),
                              view<const std::int32_t, 1>(device_places.data(), n),
                              stream_ref(cudaStreamPerThread)));
      must(cudaStreamSynchronize(cudaStreamPerThread));
    }
  }
  v4::page_pool pool;

 private:
  device_block<std::byte> memory_;
};

/// A decode step's attention over a window of 128 and `selected` entries at random places, in as many copies as make
/// the entries come from memory.
void attend_v4(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t rows = state.range(0), heads = state.range(1), selected = state.range(2), window = 128;
  const double bytes = static_cast<double>(rows * (window + selected) * v4::entry_bytes);
  const auto sets = static_cast<std::int64_t>(std::clamp(300e6 / bytes, 4.0, 64.0));
  const pages window_pages(v4::window_entries, rows * sets / 2 + 1);
  const pages selected_pages(v4::csa_entries, std::max<std::int64_t>(rows * sets * selected, 500000) / 64);
  const std::int64_t pool_entries = selected_pages.pool.num_pages * v4::csa_entries;

  std::mt19937 random(7);
  std::vector<std::int32_t> window_list(static_cast<std::size_t>(rows * sets * window));
  std::vector<std::int32_t> list(static_cast<std::size_t>(rows * sets * selected));
  for (std::size_t i = 0; i < window_list.size(); ++i) window_list[i] = static_cast<std::int32_t>(i);
  for (auto& e : list) e = static_cast<std::int32_t>(random() % static_cast<unsigned>(pool_entries));
  const device_block<std::int32_t> device_window(window_list), device_list(list);
  const std::vector<std::int32_t> counts(static_cast<std::size_t>(rows), static_cast<std::int32_t>(window));
  const std::vector<std::int32_t> more_counts(counts.size(), static_cast<std::int32_t>(selected));
  const device_block<std::int32_t> window_counts(counts), selected_counts(more_counts);
  const std::int64_t elements = rows * heads * v4::entry_dim;
  const device_block<std::byte> q(static_cast<std::size_t>(elements * sets) * 2);
  const device_block<std::byte> out(static_cast<std::size_t>(elements * sets) * 2);
  fill_random(q.data(), q.bytes(), 9);

  v4::attend_shape shape;
  shape.rows = rows;
  shape.heads = static_cast<std::int32_t>(heads);
  shape.max_entries = static_cast<std::int32_t>(window + selected);
  const v4::attend_plan plan = v4::plan_attend(shape);
  const device_block<std::byte> scratch(v4::attend_workspace_bytes(plan));
  flashmemory::attend_options options;
  options.scratch = {scratch.data(), scratch.bytes()};
  const double seconds = seconds_per_call(static_cast<int>(2 * sets), [&](int i, stream_ref stream) {
    const std::int64_t set = i % sets;
    v4::entry_source near, far;
    near.pool = window_pages.pool;
    near.entries = view<const std::int32_t, 2>(device_window.data() + set * rows * window, rows, window);
    near.counts = view<const std::int32_t, 1>(window_counts.data(), rows);
    far.pool = selected_pages.pool;
    far.entries = view<const std::int32_t, 2>(device_list.data() + set * rows * selected, rows, selected);
    far.counts = view<const std::int32_t, 1>(selected_counts.data(), rows);
    must(v4::sparse_attend(
        plan, near, far,
        const_tensor<3>(q.data() + set * elements * 2, dtype::bf16, rows, heads, v4::entry_dim),
        tensor<3>(out.data() + set * elements * 2, dtype::bf16, rows, heads, v4::entry_dim), options,
        stream));
  });
  state.counters["splits"] = plan.splits;
  state.counters["dim_splits"] = plan.dim_splits;
  state.counters["Tflop/s"] =
      4e-12 * static_cast<double>(rows * heads * (window + selected) * v4::entry_dim) / seconds;
  report(state, seconds, bytes);
}

void args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "heads", "selected"})->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
  for (const int rows : {1, 8, 32, 64, 128}) b->Args({rows, 64, 512});
  for (const int rows : {1, 8, 32, 64}) b->Args({rows, 64, 1024});
  for (const int rows : {1, 8, 32, 64}) b->Args({rows, 128, 1024});
}
BENCHMARK(attend_v4)->Name("cuda/attend_v4")->Apply(args);

/// Quantising a step's new entries into their places.
void append_v4(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t rows = state.range(0), sets = std::max<std::int64_t>(4, 300000 / rows);
  const pages target(v4::csa_entries, rows * sets / v4::csa_entries + 1);
  std::vector<std::int32_t> places(static_cast<std::size_t>(rows * sets));
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<std::int32_t>(i);
  std::shuffle(places.begin(), places.end(), std::mt19937(3));
  const device_block<std::int32_t> device_places(places);
  const device_block<std::byte> values(static_cast<std::size_t>(rows * sets * v4::entry_dim) * 2);
  fill_random(values.data(), values.bytes(), 11);
  const auto calls = static_cast<int>(std::min<std::int64_t>(sets, 200));
  const double seconds = seconds_per_call(calls, [&](int i, stream_ref stream) {
    const std::int64_t first = i % sets * rows;
    must(v4::append_entries(
        target.pool,
        const_tensor<2>(values.data() + first * v4::entry_dim * 2, dtype::bf16, rows, v4::entry_dim),
        view<const std::int32_t, 1>(device_places.data() + first, rows), stream));
  });
  report(state, seconds, static_cast<double>(rows * (v4::entry_dim * 2 + v4::entry_bytes)));
}
BENCHMARK(append_v4)
    ->Name("cuda/append_v4")
    ->ArgName("rows")
    ->Arg(1)
    ->Arg(64)
    ->Arg(4096)
    ->Arg(65536)
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace flashmemory_bench
