// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/core/ptx.cuh>
#include <flashmemory/cuda/store/copy_span.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Copies of many blocks of equal size by a kernel that reads mapped host memory, or anything else it can address,
/// itself: a recall.
namespace gather {

// Where blocks lie. Such a policy is a plain struct, passed to kernels by value, of which at[i] is the copy_span of block i.

/// Spans in the launch's own parameters: the more there is room for, the longer a launch takes.
template <int kSpans>
struct span_table {
  copy_span spans[kSpans];
  __device__ __forceinline__ const copy_span& operator[](std::int64_t i) const { return spans[i]; }
};

/// Spans in memory that the device reads.
struct span_list {
  const copy_span* spans = nullptr;
  __device__ __forceinline__ const copy_span& operator[](std::int64_t i) const { return spans[i]; }
};

/// Pages of one pool to pages of another, by two lists of numbers that the device reads.
struct page_copies {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  const std::int32_t* to_pages = nullptr;
  const std::int32_t* from_pages = nullptr;
  std::int64_t to_stride = 0, from_stride = 0;  ///< bytes from a page to the next
  __device__ __forceinline__ copy_span operator[](std::int64_t i) const {
    return {to + to_pages[i] * to_stride, from + from_pages[i] * from_stride};
  }
};

namespace detail {

// What limits small recalls is the round trip over the bus, about 3 us, so every block is cut into pieces, and
// all pieces of a small recall are requested at once. One thread per multiprocessor keeps `stages` of them in
// flight, the copy engine of its multiprocessor moves the bytes.
inline constexpr int stages = 8;
inline constexpr std::uint32_t largest_piece = 16384, smallest_piece = 2048;
inline constexpr int portable_threads = 512, portable_unroll = 4;

/// Bulk copies through shared memory; piece i of this block lies in stage i % stages.
template <class Spans>
static __global__ void __launch_bounds__(32, 1)
    gather_bulk(const __grid_constant__ Spans spans, std::int64_t pieces, std::uint32_t pieces_per_block,
                std::uint32_t piece, std::uint32_t bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte ring[];
  __shared__ std::uint64_t arrived[stages];
  if (threadIdx.x != 0) return;
  for (int s = 0; s < stages; ++s) ptx::barrier_init(arrived + s, 1);
  ptx::barrier_init_fence();
  const std::int64_t step = gridDim.x;
  const std::int64_t count = (pieces - blockIdx.x + step - 1) / step;
  const auto place = [&](std::int64_t i, std::uint32_t* offset, std::uint32_t* size) -> decltype(auto) {
    const std::int64_t at = blockIdx.x + i * step;
    const auto within = static_cast<std::uint32_t>(at % pieces_per_block);
    *offset = within * piece;
    *size = min(piece, bytes - *offset);
    return spans[at / pieces_per_block];
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
    ptx::bulk_store(span.to + offset, ring + s * piece, size);
    ptx::bulk_commit();
    // The stage of the store before this one is free once only this one is left to read shared memory.
    const std::int64_t next = i - 1 + stages;
    if (i > 0 && next < count) {
      ptx::bulk_wait_read<1>();
      request(next);
    }
  }
  ptx::bulk_wait<0>();
#endif
}

/// The same with 16-byte loads and stores, four of each per thread in flight.
template <class Spans>
static __global__ void __launch_bounds__(portable_threads)
    gather_portable(const __grid_constant__ Spans spans, std::int64_t words, std::uint32_t words_per_block) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  const auto find = [&](std::int64_t w, const uint4** from, uint4** to) {
    const copy_span& span = spans[w / words_per_block];
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

}  // namespace detail

/// Lets launch_bulk() have its shared memory on the current device; once for each policy and device. False if the build has
/// no kernel for it that the device runs: before compute capability 9.0.
template <class Spans>
bool make_bulk_ready() noexcept {
  int device = 0, major = 0;
  cudaFuncAttributes built{};
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9 && cudaFuncGetAttributes(&built, detail::gather_bulk<Spans>) == cudaSuccess &&
         built.ptxVersion >= 90 &&
         cudaFuncSetAttribute(detail::gather_bulk<Spans>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              detail::stages * static_cast<int>(detail::largest_piece)) == cudaSuccess;
}

/// Copies by bulk copies of at most `num_sms` multiprocessors, which make_bulk_ready() must have allowed. Enqueues.
/// \param count  blocks, at least one
/// \param bytes  of each, a multiple of 16
template <class Spans>
cudaError_t launch_bulk(const Spans& spans, std::int64_t count, std::size_t bytes, int num_sms,
                        cudaStream_t stream) noexcept {
  std::uint32_t piece = detail::smallest_piece;
  const auto pieces_of = [&] { return (bytes + piece - 1) / piece; };
  while (piece < detail::largest_piece &&
         std::size_t(count) * pieces_of() > std::size_t(num_sms) * detail::stages)
    piece *= 2;
  const std::int64_t pieces = count * static_cast<std::int64_t>(pieces_of());
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(num_sms, pieces));
  detail::gather_bulk<<<blocks, 32, std::size_t(piece) * detail::stages, stream>>>(
      spans, pieces, static_cast<std::uint32_t>(pieces_of()), piece, static_cast<std::uint32_t>(bytes));
  return cudaGetLastError();
}

/// The same by loads and stores, on any device.
template <class Spans>
cudaError_t launch_portable(const Spans& spans, std::int64_t count, std::size_t bytes, int num_sms,
                            cudaStream_t stream) noexcept {
  const std::int64_t words = count * static_cast<std::int64_t>(bytes / 16);
  const std::int64_t blocks = std::min<std::int64_t>(
      2 * std::int64_t{num_sms}, (words + detail::portable_threads - 1) / detail::portable_threads);
  detail::gather_portable<<<static_cast<unsigned>(blocks), detail::portable_threads, 0, stream>>>(
      spans, words, static_cast<std::uint32_t>(bytes / 16));
  return cudaGetLastError();
}

}  // namespace gather
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
