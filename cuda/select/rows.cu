// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cuda/core/convert.cuh"
#include "cuda/select/kernels.hpp"
#include "cuda/select/row_window.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 256;

__device__ __forceinline__ void keep(const kept_rows& kept, std::int64_t place, std::int64_t token,
                                     const row_tensor& from, std::int64_t row) {
  const std::int64_t to = (place * kept.capacity + token % kept.capacity) * kept.width;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x); i < kept.width; i += threads)
    copy_element(kept.data, kept.type, to + i, from.data, from.type, element_of(from, row, i));
}

/// A block per part and token that stays, newest last.
__global__ void __launch_bounds__(threads)
    keep_rows_kernel(const kept_rows kept, const __grid_constant__ row_parts parts, const row_tensor from) {
  const row_part part = parts.part[blockIdx.x];
  const std::int64_t stay = min(static_cast<std::int64_t>(part.tokens), kept.capacity);
  if (blockIdx.y >= stay) return;
  const std::int64_t i = part.tokens - stay + static_cast<std::int64_t>(blockIdx.y);
  keep(kept, part.place, part.position + i, from, part.from + i);
}

__global__ void __launch_bounds__(threads)
    keep_step_kernel(const kept_rows kept, const std::int64_t* places, const std::int64_t* positions,
                     std::int32_t tokens, const row_tensor from) {
  const std::int64_t place = places[blockIdx.x], t = static_cast<std::int64_t>(blockIdx.y);
  if (place < 0) return;
  keep(kept, place, positions[blockIdx.x] + t, from, static_cast<std::int64_t>(blockIdx.x) * tokens + t);
}

__global__ void __launch_bounds__(threads)
    gather_rows_kernel(const kept_rows kept, const std::int64_t* places, const std::int64_t* positions,
                       const std::int64_t* oldest, std::byte* out) {
  const std::int64_t back = static_cast<std::int64_t>(gridDim.y) - 1 - static_cast<std::int64_t>(blockIdx.y);
  const std::int64_t token = max(positions[blockIdx.x] - back, oldest[blockIdx.x]);
  const std::int64_t at = (places[blockIdx.x] * kept.capacity + token % kept.capacity) * kept.width;
  const std::int64_t to = (std::int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * kept.width;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x); i < kept.width; i += threads)
    copy_element(out, kept.type, to + i, kept.data, kept.type, at + i);
}

__global__ void __launch_bounds__(threads)
    fetch_kernel(const std::uint64_t* from, std::uint64_t* to, std::size_t words) {
  for (std::size_t i = std::size_t{blockIdx.x} * threads + threadIdx.x; i < words;
       i += std::size_t{gridDim.x} * threads)
    to[i] = from[i];
}

}  // namespace

cudaError_t launch_fetch(const std::byte* pinned, std::byte* device, std::size_t bytes,
                         cudaStream_t stream) noexcept {
  const std::size_t words = bytes / sizeof(std::uint64_t);
  if (words == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min<std::size_t>((words + threads - 1) / threads, 64));
  fetch_kernel<<<blocks, threads, 0, stream>>>(reinterpret_cast<const std::uint64_t*>(pinned),
                                               reinterpret_cast<std::uint64_t*>(device), words);
  return cudaGetLastError();
}

cudaError_t launch_keep_rows(const kept_rows& kept, const row_parts& parts, std::int32_t count,
                             std::int64_t most_tokens, const row_tensor& from, cudaStream_t stream) noexcept {
  const std::int64_t stay = most_tokens < kept.capacity ? most_tokens : kept.capacity;
  keep_rows_kernel<<<dim3(static_cast<unsigned>(count), static_cast<unsigned>(stay)), threads, 0, stream>>>(
      kept, parts, from);
  return cudaGetLastError();
}

cudaError_t launch_keep_step(const kept_rows& kept, const std::int64_t* places, const std::int64_t* positions,
                             std::int32_t rows, std::int32_t tokens, const row_tensor& from,
                             cudaStream_t stream) noexcept {
  keep_step_kernel<<<dim3(static_cast<unsigned>(rows), static_cast<unsigned>(tokens)), threads, 0, stream>>>(
      kept, places, positions, tokens, from);
  return cudaGetLastError();
}

cudaError_t launch_gather_rows(const kept_rows& kept, const std::int64_t* places,
                               const std::int64_t* positions, const std::int64_t* oldest, std::int64_t count,
                               std::int64_t tokens, std::byte* out, cudaStream_t stream) noexcept {
  gather_rows_kernel<<<dim3(static_cast<unsigned>(count), static_cast<unsigned>(tokens)), threads, 0,
                       stream>>>(kept, places, positions, oldest, out);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
