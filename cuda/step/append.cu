// SPDX-License-Identifier: MIT
#include "cuda/core/convert.cuh"
#include "cuda/core/key_page.cuh"
#include "cuda/step/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 128;

__device__ __forceinline__ void copy_row(const append_target& target, std::int32_t head,
                                         const row_source& from, dtype stored) {
  std::byte* const block = target.chunk + from.offset + head * from.head_bytes;
  const std::int64_t to = std::int64_t{target.entry} * from.dim;
  const std::int64_t at = target.row * from.row_stride + head * from.head_stride;
  for (int i = static_cast<int>(threadIdx.x); i < from.dim; i += threads)
    copy_element(block, stored, to + i, from.data, from.type, at + i);
}

/// A block per new entry and head; a thread per element, so that reads and writes are whole lines.
__global__ void __launch_bounds__(threads)
    append_kernel(const append_target* targets, const row_source k, const row_source v, dtype stored) {
  const append_target target = targets[blockIdx.x];
  if (target.chunk == nullptr) return;
  copy_row(target, static_cast<std::int32_t>(blockIdx.y), k, stored);
  copy_row(target, static_cast<std::int32_t>(blockIdx.y), v, stored);
}

/// A block per new key.
__global__ void __launch_bounds__(threads)
    append_keys_kernel(const append_target* targets, std::int32_t per_row, const std::byte* keys,
                       const key_page page, unsigned long long* nan_keys) {
  const append_target target = targets[blockIdx.x];
  if (target.chunk == nullptr) return;
  const std::byte* const row = keys + std::int64_t{target.row} * page.key_bytes;
  const int values = page.key_bytes - 4;
  bool nan = false;
  for (int i = static_cast<int>(threadIdx.x); i < values; i += threads)
    nan = nan || (static_cast<int>(row[i]) & 0x7f) == 0x7f;
  std::uint32_t scale = 0;
  for (int i = 0; i < 4; ++i) scale |= static_cast<std::uint32_t>(row[values + i]) << 8 * i;
  nan = nan || (scale & 0x7f800000u) == 0x7f800000u;
  nan = __syncthreads_or(nan) != 0;
  if (nan && threadIdx.x == 0) atomicAdd(nan_keys, 1ull);
  clear_new_page<threads>(targets, static_cast<int>(blockIdx.x), per_row, page);
  std::byte* const out = key_values(target.chunk, target.entry, page);
  for (int i = static_cast<int>(threadIdx.x); i < values; i += threads) out[i] = nan ? std::byte{0} : row[i];
  if (threadIdx.x == 0) store_scale(target.chunk, target.entry, page, nan ? 0 : scale);
}

}  // namespace

cudaError_t launch_append(const append_target* targets, std::int64_t count, std::int32_t heads,
                          const row_source& k, const row_source& v, dtype stored,
                          cudaStream_t stream) noexcept {
  append_kernel<<<dim3(static_cast<unsigned>(count), static_cast<unsigned>(heads)), threads, 0, stream>>>(
      targets, k, v, stored);
  return cudaGetLastError();
}

cudaError_t launch_append_keys(const append_target* targets, std::int64_t rows, std::int32_t per_row,
                               const std::byte* keys, const key_page& page, unsigned long long* nan_keys,
                               cudaStream_t stream) noexcept {
  append_keys_kernel<<<static_cast<unsigned>(rows * per_row), threads, 0, stream>>>(targets, per_row, keys,
                                                                                    page, nan_keys);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
