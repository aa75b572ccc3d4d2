// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/cuda/core/ptx.cuh>

#include "cuda/store/gather.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

// What limits small recalls is the round trip over the bus, about 3 us, so every block is cut into pieces, and
// all pieces of a small recall are requested at once. One thread per multiprocessor keeps `stages` of them in
// flight, the copy engine of its multiprocessor moves the bytes.
constexpr int stages = 8;
constexpr std::uint32_t largest_piece = 16384, smallest_piece = 2048;
constexpr int portable_threads = 512, portable_unroll = 4;

template <int N>
struct span_table {
  copy_span spans[N];
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void bulk_store(void* global, const void* shared, std::uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
      "r"(ptx::shared_address(shared).value), "r"(bytes)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

#endif

/// Bulk copies through shared memory; piece i of this block lies in stage i % stages.
template <int N>
__global__ void __launch_bounds__(32, 1)
    gather_bulk(const __grid_constant__ span_table<N> table, std::int64_t pieces,
                std::uint32_t pieces_per_block, std::uint32_t piece, std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte ring[];
  __shared__ std::uint64_t arrived[stages];
  if (threadIdx.x != 0) return;
  for (int s = 0; s < stages; ++s) ptx::barrier_init(arrived + s, 1);
  ptx::barrier_init_fence();
  const std::int64_t step = gridDim.x;
  const std::int64_t count = (pieces - blockIdx.x + step - 1) / step;
  const auto place = [&](std::int64_t i, std::uint32_t* offset, std::uint32_t* size) -> const copy_span& {
    const std::int64_t at = blockIdx.x + i * step;
    const auto within = static_cast<std::uint32_t>(at % pieces_per_block);
    *offset = within * piece;
    *size = min(piece, bytes - *offset);
    return table.spans[at / pieces_per_block];
  };
  const auto request = [&](std::int64_t i) {
    std::uint32_t offset, size;
    const copy_span& span = place(i, &offset, &size);
    const int s = static_cast<int>(i % stages);
    ptx::barrier_arrive_expect(arrived + s, size);
    ptx::bulk_copy(ring + s * piece, span.from + offset, size, arrived + s);
  };
  for (std::int64_t i = 0; i < count && i < stages; ++i) request(i);
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t offset, size;
    const copy_span& span = place(i, &offset, &size);
    const int s = static_cast<int>(i % stages);
    ptx::barrier_wait(arrived + s, static_cast<std::uint32_t>(i / stages) & 1);
    bulk_store(span.to + offset, ring + s * piece, size);
    // The stage of the store before this one is free once only this one is left to read shared memory.
    const std::int64_t next = i - 1 + stages;
    if (i > 0 && next < count) {
      asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
      request(next);
    }
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

/// The same with 16-byte loads and stores, four of each per thread in flight.
template <int N>
__global__ void __launch_bounds__(portable_threads)
    gather_portable(const __grid_constant__ span_table<N> table, std::int64_t words,
                    std::uint32_t words_per_block) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  const auto find = [&](std::int64_t w, const uint4** from, uint4** to) {
    const copy_span& span = table.spans[w / words_per_block];
    const std::int64_t at = w % words_per_block;
    *from = reinterpret_cast<const uint4*>(span.from) + at;
    *to = reinterpret_cast<uint4*>(span.to) + at;
  };
  for (std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; first < words;
       first += step * portable_unroll) {
    uint4 held[portable_unroll];
    uint4* to[portable_unroll];
#pragma unroll
    for (int u = 0; u < portable_unroll; ++u) {
      const std::int64_t w = first + u * step;
      const uint4* from = nullptr;
      if (w < words) {
        find(w, &from, &to[u]);
        held[u] = *from;
      }
    }
#pragma unroll
    for (int u = 0; u < portable_unroll; ++u)
      if (first + u * step < words) *to[u] = held[u];
  }
}

template <int N>
cudaError_t launch(const copy_span* spans, std::int64_t count, std::size_t bytes, int num_sms, bool bulk,
                   cudaStream_t stream) noexcept {
  span_table<N> table;
  std::copy(spans, spans + count, table.spans);
  if (!bulk) {
    const std::int64_t words = count * static_cast<std::int64_t>(bytes / 16);
    const std::int64_t blocks =
        std::min<std::int64_t>(2 * std::int64_t{num_sms}, (words + portable_threads - 1) / portable_threads);
    gather_portable<N><<<static_cast<unsigned>(blocks), portable_threads, 0, stream>>>(
        table, words, static_cast<std::uint32_t>(bytes / 16));
    return cudaGetLastError();
  }
  std::uint32_t piece = smallest_piece;
  const auto pieces_of = [&] { return (bytes + piece - 1) / piece; };
  while (piece < largest_piece && std::size_t(count) * pieces_of() > std::size_t(num_sms) * stages)
    piece *= 2;
  const std::int64_t pieces = count * static_cast<std::int64_t>(pieces_of());
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(num_sms, pieces));
  gather_bulk<N><<<blocks, 32, std::size_t(piece) * stages, stream>>>(
      table, pieces, static_cast<std::uint32_t>(pieces_of()), piece, static_cast<std::uint32_t>(bytes));
  return cudaGetLastError();
}

/// Blocks that a launch's parameters have room for: more take longer to launch.
constexpr int few = 8, some = 64, most = 512;

template <int N>
bool make_ready() noexcept {
  return cudaFuncSetAttribute(gather_bulk<N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              stages * static_cast<int>(largest_piece)) == cudaSuccess;
}

}  // namespace

bool has_bulk_gather() noexcept {
  int device = 0, major = 0;
  cudaFuncAttributes built{};
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9 && cudaFuncGetAttributes(&built, gather_bulk<some>) == cudaSuccess &&
         built.ptxVersion >= 90 && make_ready<few>() && make_ready<some>() && make_ready<most>();
}

cudaError_t launch_gather(const copy_span* spans, std::int64_t count, std::size_t bytes, int num_sms,
                          bool bulk, cudaStream_t stream) noexcept {
  cudaError_t code = cudaSuccess;
  while (count > 0 && code == cudaSuccess) {
    const std::int64_t now = std::min<std::int64_t>(count, most);
    const auto run = now <= few ? launch<few> : now <= some ? launch<some> : launch<most>;
    code = run(spans, now, bytes, num_sms, bulk, stream);
    spans += now;
    count -= now;
  }
  return code;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
