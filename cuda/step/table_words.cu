// SPDX-License-Identifier: MIT
#include "cuda/step/table_words.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

/// A thread per change, read from pinned memory over the bus in whole lines.
__global__ void patch_kernel(const table_patch* __restrict__ patches, std::int64_t count,
                             std::uint64_t* __restrict__ words) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    const ulonglong2 p = *reinterpret_cast<const ulonglong2*>(patches + i);
    words[p.x] = p.y;
  }
}

}  // namespace

cudaError_t launch_patches(const table_patch* patches, std::int64_t count, std::uint64_t* words,
                           cudaStream_t stream) noexcept {
  constexpr int threads = 128;
  const std::int64_t blocks = (count + threads - 1) / threads;
  patch_kernel<<<static_cast<unsigned>(blocks < 256 ? blocks : 256), threads, 0, stream>>>(patches, count,
                                                                                           words);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
