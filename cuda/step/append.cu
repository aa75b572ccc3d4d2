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

/// Whether this thread's share of a key has a NaN or Inf; what that is depends on the type.
__device__ __forceinline__ bool has_nan(const std::byte* row, const key_page& page) {
  bool nan = false;
  const auto at = [&](int i) { return static_cast<std::uint32_t>(row[i]); };
  const bool pairs = page.type == index_key_type::bf16 || page.type == index_key_type::f16;
  const std::uint32_t exponent = page.type == index_key_type::bf16 ? 0x7f80u : 0x7c00u;
  for (int i = static_cast<int>(threadIdx.x); i < page.value_bytes; i += threads) {
    if (page.type == index_key_type::e4m3) nan = nan || (at(i) & 0x7f) == 0x7f;
    if (pairs && i % 2 == 0) nan = nan || ((at(i) | at(i + 1) << 8) & exponent) == exponent;
  }
  if (page.type == index_key_type::mxfp4) {
    for (int i = static_cast<int>(threadIdx.x); i < page.scale_bytes; i += threads)
      nan = nan || at(page.value_bytes + i) == 0xff;
  } else if (!pairs) {
    std::uint32_t scale = 0;
    for (int i = 0; i < 4; ++i) scale |= at(page.value_bytes + i) << 8 * i;
    nan = nan || (scale & 0x7f800000u) == 0x7f800000u;
  }
  return nan;
}

/// A block per new key.
__global__ void __launch_bounds__(threads)
    append_keys_kernel(const append_target* targets, std::int32_t per_row, const std::byte* keys,
                       const key_page page, unsigned long long* nan_keys) {
  const append_target target = targets[blockIdx.x];
  if (target.chunk == nullptr) return;
  const std::byte* const row = keys + std::int64_t{target.row} * page.key_bytes();
  const bool nan = __syncthreads_or(has_nan(row, page)) != 0;
  if (nan && threadIdx.x == 0) atomicAdd(nan_keys, 1ull);
  clear_new_page<threads>(targets, static_cast<int>(blockIdx.x), per_row, page);
  std::byte* const values = key_values(target.chunk, target.entry, page);
  std::byte* const scales = key_scales(target.chunk, target.entry, page);
  for (int i = static_cast<int>(threadIdx.x); i < page.key_bytes(); i += threads)
    (i < page.value_bytes ? values + i : scales + i - page.value_bytes)[0] = nan ? std::byte{0} : row[i];
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
