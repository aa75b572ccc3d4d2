// SPDX-License-Identifier: MIT
#include <sys/mman.h>

#include <chrono>
#include <flashmemory/cuda/attend.hpp>
#include <flashmemory/cuda/store.hpp>
#include <numeric>
#include <random>

#include "bench/cuda/device.hpp"
#include "cuda/store/gather.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;
using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point begin) {
  return std::chrono::duration<double>(clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// Bytes/s of one copy of 256 MB from pinned memory, the most that a copy engine does here.
double copy_ceiling() {
  static const double measured = [] {
    constexpr std::size_t bytes = std::size_t{256} << 20;
    void* pinned = nullptr;
    must(cudaHostAlloc(&pinned, bytes, cudaHostAllocDefault));
    device_block<std::byte> block(bytes);
    std::vector<double> seconds;
    for (int i = 0; i < 5; ++i) {
      const auto begin = clock::now();
      must(cudaMemcpyAsync(block.data(), pinned, bytes, cudaMemcpyHostToDevice, nullptr));
      must(cudaStreamSynchronize(nullptr));
      seconds.push_back(seconds_since(begin));
    }
    must(cudaFreeHost(pinned));
    return double(bytes) / median(seconds);
  }();
  return measured;
}

/// A geometry whose chunks have about this many KB: 64 entries of bf16.
kv_geometry geometry_of(std::int64_t kilobytes) {
  kv_geometry g;
  g.layers = kilobytes > 256 ? static_cast<std::int32_t>(kilobytes / 256) : 1;
  g.kv_heads = kilobytes >= 256 ? 8 : kilobytes == 64 ? 2 : 1;
  g.key_dim = g.value_dim = kilobytes == 37 ? 146 : 128;
  return g;
}

/// A sequence of `chunks` chunks in the backing store, of which `quota` may be resident.
struct setting {
  setting(std::int64_t kilobytes, std::int64_t chunks, std::int64_t most,
          const cuda::device_store_options& how) {
    store_options o;
    o.geometry = geometry_of(kilobytes);
    bytes = chunk_layout(o.geometry).chunk_bytes();
    o.max_sequences = 1;
    o.fast_bytes = std::size_t(2 * most + 16) * (bytes + 512) + (std::size_t{8} << 20);
    o.backing_bytes = std::size_t(chunks) * bytes;
    store = cuda::make_store(o, {}, how);
    sequence_options s;
    s.max_tokens = chunks * 64;
    s.max_resident_chunks = std::min(most + 8, chunks - 1);
    s.sink_chunks = s.recent_chunks = 0;
    sequence = store->open(s);
    std::vector<std::byte> chunk(bytes);
    for (std::size_t i = 0; i < bytes; ++i) chunk[i] = std::byte(i * 7);
    for (std::int64_t c = 0; c < chunks; ++c)
      must(store->append_chunk(sequence, view<const std::byte, 1>(chunk.data(), bytes), 64));
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ids.resize(std::size_t(chunks));
    std::iota(ids.begin(), ids.end(), 0);
  }
  ~setting() {
    store.reset();
    cudaStreamDestroy(stream);
  }
  view<const chunk_id, 1> some(std::int64_t first, std::int64_t count) const {
    return view<const chunk_id, 1>(ids.data() + first, count);
  }
  stream_ref ref() const { return stream_ref(stream); }

  std::unique_ptr<tiered_chunk_store> store;
  sequence_handle sequence;
  cudaStream_t stream = nullptr;
  std::size_t bytes = 0;
  std::vector<chunk_id> ids;
};

void report_copy(benchmark::State& state, double seconds, double bytes) {
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["us"] = seconds * 1e6;
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["of_copy"] = bytes / seconds / copy_ceiling();
}

/// recall() of scattered chunks, from the call until it has returned with the new set. By the copy engines if `sms` is
/// 0, as the store chooses if it is negative.
void on_demand(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t kilobytes = state.range(0), count = state.range(1), sms = state.range(2);
  cuda::device_store_options device;
  device.on_demand = sms > 0    ? cuda::recall_method::kernel
                     : sms == 0 ? cuda::recall_method::copy_engine
                                : cuda::recall_method::automatic;
  if (sms > 0) device.recall_sms = static_cast<std::int32_t>(sms);
  setting s(kilobytes, count * 6, count, device);
  std::shuffle(s.ids.begin(), s.ids.end(), std::mt19937(3));
  std::vector<double> seconds;
  for (int i = 0; i < 30; ++i) {
    must(s.store->recall(s.sequence, {}, nullptr, s.ref()));
    const auto wanted = s.some(i % 5 * count, count);
    recall_report r;
    const auto begin = clock::now();
    must(s.store->recall(s.sequence, wanted, &r, s.ref()));
    if (i >= 5) seconds.push_back(seconds_since(begin));
    if (r.recalled != count) throw std::runtime_error("not every chunk was copied");
  }
  report_copy(state, median(seconds), double(count) * double(s.bytes));
}

/// The recall kernel alone, from pinned huge pages to scattered slots, in a graph of calls over 256 MB: what of
/// recall()'s time is the bus.
void gather_alone(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t count = state.range(1), sms = state.range(2);
  const std::size_t bytes = chunk_layout(geometry_of(state.range(0))).chunk_bytes(),
                    all = std::size_t{256} << 20;
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  auto* const pinned = static_cast<std::byte*>(std::aligned_alloc(huge_page, all));
  madvise(pinned, all, MADV_HUGEPAGE);
  for (std::size_t i = 0; i < all; ++i) pinned[i] = std::byte(i * 7);
  must(cudaHostRegister(pinned, all, cudaHostRegisterMapped));
  {
    const device_block<std::byte> slots(all);
    const auto places = static_cast<std::int64_t>(all / bytes);
    std::vector<std::int64_t> order(static_cast<std::size_t>(places));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    const bool bulk = cuda::detail::has_bulk_gather();
    std::vector<cuda::copy_span> spans(static_cast<std::size_t>(count));
    const double seconds = seconds_per_call(
        static_cast<int>(std::clamp<std::int64_t>(places / count, 4, 64)), [&](int i, stream_ref stream) {
          for (std::int64_t c = 0; c < count; ++c) {
            const auto place = std::size_t(order[std::size_t((i * count + c) % places)]);
            spans[std::size_t(c)] = {slots.data() + place * bytes, pinned + place * bytes};
          }
          must(cuda::detail::launch_gather(spans.data(), count, bytes, static_cast<int>(sms), bulk,
                                           stream.cuda()));
        });
    std::vector<std::byte> got(bytes);
    must(cudaMemcpy(got.data(), spans.back().to, bytes, cudaMemcpyDeviceToHost));
    if (!std::equal(got.begin(), got.end(), spans.back().from))
      state.SkipWithError("what was copied differs");
    else
      report_copy(state, seconds, double(count) * double(bytes));
  }
  must(cudaHostUnregister(pinned));
  std::free(pinned);
}

/// start_recall() of 256 MB until poll_recall() says landed; `scattered` or as neighbours in the backing store.
void prefetch(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t kilobytes = state.range(0), count = (std::int64_t{256} << 10) / kilobytes;
  setting s(kilobytes, count * 2 + 1, count, {});
  if (state.range(1)) std::shuffle(s.ids.begin(), s.ids.end() - 1, std::mt19937(3));
  std::vector<double> seconds, started;
  for (int i = 0; i < 6; ++i) {
    must(s.store->recall(s.sequence, {}, nullptr, s.ref()));
    const auto begin = clock::now();
    must(s.store->start_recall(s.sequence, s.some(i % 2 * count, count), nullptr, s.ref()));
    started.push_back(seconds_since(begin));
    while (s.store->poll_recall(s.sequence) == status::pending) {
    }
    seconds.push_back(seconds_since(begin));
    must(s.store->finish_recall(s.sequence, late_policy::wait, nullptr, s.ref()));
  }
  state.counters["start_us"] = median(started) * 1e6;
  report_copy(state, median(seconds), double(count) * double(s.bytes));
}

/// Decode attention, 32 rows of 64 chunks, back to back while 256 MB is prefetched, and without. With 0 KB a single
/// copy of 256 MB without the store takes the prefetch's place: the least that such a copy costs attention.
void beside_attention(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const bool bare = state.range(0) == 0;
  const std::int64_t kilobytes = bare ? 1024 : state.range(0), count = (std::int64_t{256} << 10) / kilobytes;
  setting s(kilobytes, count * 2 + 1, count, {});
  std::shuffle(s.ids.begin(), s.ids.end() - 1, std::mt19937(3));

  cuda::attend_shape shape;
  auto& g = shape.geometry;
  g.kv_heads = 8;
  g.key_dim = g.value_dim = 128;
  g.layers = 1;
  shape.query_heads = 32;
  shape.rows = 32;
  shape.max_chunks = 64;
  const auto plan = cuda::plan_attend(shape);
  const std::size_t chunk_bytes = chunk_layout(g).chunk_bytes();
  device_block<std::byte> pool(std::size_t(32 * 64) * chunk_bytes);
  fill_random(pool.data(), pool.bytes(), 3);
  std::vector<const std::byte*> table;
  for (std::size_t i = 0; i < 32 * 64; ++i) table.push_back(pool.data() + i * chunk_bytes);
  const device_block<const std::byte*> tables(table);
  std::vector<cuda::chunk_row> row_table;
  for (std::int64_t r = 0; r < 32; ++r) row_table.push_back({tables.data() + r * 64, 64 * 64});
  const device_block<cuda::chunk_row> rows(row_table);
  device_block<std::byte> q(32 * 32 * 128 * 2), out(32 * 32 * 128 * 2);
  fill_random(q.data(), q.bytes(), 4);
  device_block<std::byte> scratch(cuda::attend_workspace_bytes(plan));
  const device_block<std::uint32_t> counters(std::vector<std::uint32_t>(cuda::attend_counters, 0));
  flashmemory::attend_options options;
  options.scratch = {scratch.data(), scratch.bytes()};
  options.counters = counters.data();
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin));
  must(cudaEventCreate(&end));
  constexpr int launches = 30;  // about as long as the copies take
  constexpr std::size_t bare_bytes = std::size_t{256} << 20;
  device_block<std::byte> landing(bare ? bare_bytes : 0);
  void* pinned = nullptr;
  cudaStream_t copying;
  must(cudaStreamCreateWithFlags(&copying, cudaStreamNonBlocking));
  if (bare) must(cudaHostAlloc(&pinned, bare_bytes, cudaHostAllocDefault));
  std::vector<double> alone, beside, copies;
  for (int i = 0; i < 42; ++i) {
    const bool with = i % 2 == 1;
    must(s.store->recall(s.sequence, {}, nullptr, s.ref()));
    must(cudaStreamSynchronize(s.stream));
    const auto started = clock::now();
    if (with && bare)
      must(cudaMemcpyAsync(landing.data(), pinned, bare_bytes, cudaMemcpyHostToDevice, copying));
    else if (with)
      must(s.store->start_recall(s.sequence, s.some(i / 2 % 2 * count, count), nullptr, s.ref()));
    must(cudaEventRecord(begin, s.stream));
    for (int call = 0; call < launches; ++call)
      must(cuda::sparse_attend(plan, view<const cuda::chunk_row, 1>(rows.data(), 32), 0,
                               const_tensor<3>(q.data(), g.type, 32, 32, 128),
                               tensor<3>(out.data(), g.type, 32, 32, 128), options, s.ref()));
    must(cudaEventRecord(end, s.stream));
    if (with) {
      while (bare ? cudaStreamQuery(copying) == cudaErrorNotReady
                  : s.store->poll_recall(s.sequence) == status::pending) {
      }
      cudaGetLastError();  // not ready
      copies.push_back(seconds_since(started));
    }
    must(cudaStreamSynchronize(s.stream));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) (with ? beside : alone).push_back(ms * 1e-3);
    if (with && !bare) must(s.store->finish_recall(s.sequence, late_policy::wait, nullptr, s.ref()));
  }
  must(cudaEventDestroy(begin));
  must(cudaEventDestroy(end));
  must(cudaStreamDestroy(copying));
  must(cudaFreeHost(pinned));
  state.counters["slowdown"] = median(beside) / median(alone) - 1;
  state.counters["attend_us"] = median(alone) / launches * 1e6;
  report_copy(state, median(copies), double(count) * double(s.bytes));
}

void on_demand_args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"KB", "chunks", "sms"})->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
  for (const int kilobytes : {37, 64, 256, 1024})
    for (const int chunks : {1, 8, 64})
      for (const int sms : {-1, 0, 4}) b->Args({kilobytes, chunks, sms});
  for (const int sms : {0, 2, 8, 16}) b->Args({64, 512, sms});
  b->Args({64, 512, 4});
}
void bulk_args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"KB", "scattered"})->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
  for (const int kilobytes : {37, 64, 256, 1024})
    for (const int scattered : {0, 1}) b->Args({kilobytes, scattered});
}
BENCHMARK(on_demand)->Name("cuda/recall")->Apply(on_demand_args);
void gather_args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"KB", "chunks", "sms"})->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
  for (const int kilobytes : {37, 64, 256})
    for (const int chunks : {1, 8, 64}) b->Args({kilobytes, chunks, 4});
}
BENCHMARK(gather_alone)->Name("cuda/recall_kernel")->Apply(gather_args);
BENCHMARK(prefetch)->Name("cuda/prefetch")->Apply(bulk_args);
BENCHMARK(beside_attention)
    ->Name("cuda/prefetch_beside_attention")
    ->ArgNames({"KB"})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMicrosecond)
    ->Arg(0)
    ->Arg(64)
    ->Arg(256)
    ->Arg(1024);

}  // namespace
}  // namespace flashmemory_bench
