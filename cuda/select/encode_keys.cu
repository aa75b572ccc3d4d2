// SPDX-License-Identifier: MIT
#include <cuda_fp8.h>

#include "cuda/core/convert.cuh"
#include "cuda/core/key_page.cuh"
#include "cuda/select/kernels.hpp"
#include "cuda/select/row_window.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int dim = 128;    // of a key, and threads of a block
constexpr int slice = 256;  // of the hidden size, pooled at a time
constexpr int keys_at_once = 8;

/// Keys of consecutive numbers: mean of a window of rows -> weights -> Hadamard / sqrt(128) -> e4m3 and scale, in
/// dual_encoder_indexer's order but for the sum over the hidden size, which here is one thread's from first to last.
/// A thread owns one element of all keys, so that weights, [hidden, 128], are read in whole lines once per block.
template <int kKeys>
struct encoded_keys {
  float pooled[kKeys][slice];
  float values[kKeys][dim];
  float largest[kKeys][dim / 32];
};

template <int kKeys>
__device__ void encode(const key_encoder& encoder, const row_window& window, std::int64_t first_key,
                       int count, encoded_keys<kKeys>& shared, std::uint8_t (&code)[kKeys],
                       float (&scale)[kKeys], bool (&nan)[kKeys]) {
  const int thread = static_cast<int>(threadIdx.x);
  float sums[kKeys] = {};
  for (std::int64_t from = 0; from < encoder.hidden; from += slice) {
    const int depth = static_cast<int>(min(static_cast<std::int64_t>(slice), encoder.hidden - from));
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const std::int64_t first = (first_key + k + 1) * encoder.tokens_per_key - encoder.window;
      for (int i = thread; i < depth; i += dim) {
        float sum = window.at(first, from + i);
        for (int w = 1; w < encoder.window; ++w) sum += window.at(first + w, from + i);
        shared.pooled[k][i] = sum / static_cast<float>(encoder.window);
      }
    }
    __syncthreads();
    const float* const weights = encoder.weights + from * dim + thread;
    for (int i = 0; i < depth; ++i) {
      const float w = weights[i * dim];
#pragma unroll
      for (int k = 0; k < kKeys; ++k) sums[k] = fmaf(shared.pooled[k][i], w, sums[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    float x = sums[k];
    // Natural order: strides 1 to 16 between lanes, 32 and 64 between warps.
    for (int stride = 1; stride < 32; stride *= 2) {
      const float other = __shfl_xor_sync(~0u, x, stride);
      x = (thread & stride) != 0 ? other - x : x + other;
    }
    for (int stride = 32; stride < dim; stride *= 2) {
      __syncthreads();
      shared.values[k][thread] = x;
      __syncthreads();
      const float other = shared.values[k][thread ^ stride];
      x = (thread & stride) != 0 ? other - x : x + other;
    }
    x /= sqrtf(128.0f);
    float largest = fabsf(x);  // fmaxf drops NaNs, as the host does
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    if (thread % 32 == 0) shared.largest[k][thread / 32] = largest;
    __syncthreads();
    largest = encoder.scale_floor;
    for (int w = 0; w < dim / 32; ++w) largest = fmaxf(largest, shared.largest[k][w]);
    scale[k] = largest / 448.0f;
    code[k] = __nv_cvt_float_to_fp8(x / scale[k], __NV_SATFINITE, __NV_E4M3);
    nan[k] = __syncthreads_or((code[k] & 0x7f) == 0x7f || !(scale[k] <= 3.4e38f)) != 0;
    if (nan[k]) {
      code[k] = 0;
      scale[k] = 0;
    }
  }
}

__global__ void __launch_bounds__(dim)
    encode_rows_kernel(const key_encoder encoder, const row_window window, std::int64_t first_key,
                       std::int64_t count, std::byte* out) {
  __shared__ encoded_keys<keys_at_once> shared;
  const std::int64_t first = std::int64_t{blockIdx.x} * keys_at_once;
  const int here = static_cast<int>(min(static_cast<std::int64_t>(keys_at_once), count - first));
  for (int k = here; k < keys_at_once; ++k)
    for (int i = static_cast<int>(threadIdx.x); i < slice; i += dim) shared.pooled[k][i] = 0;
  std::uint8_t code[keys_at_once];
  float scale[keys_at_once];
  bool nan[keys_at_once];
  encode<keys_at_once>(encoder, window, first_key + first, here, shared, code, scale, nan);
  key_page rows;
  rows.planar = false;
  for (int k = 0; k < keys_at_once; ++k) {
    if (k >= here) break;
    std::byte* const row = out + (first + k) * rows.key_bytes();
    row[threadIdx.x] = static_cast<std::byte>(code[k]);
    if (threadIdx.x != 0) continue;
    store_scale(row, 0, rows, __float_as_uint(scale[k]));
    if (nan[k]) atomicAdd(encoder.nan_keys, 1ull);
  }
}

__global__ void __launch_bounds__(dim)
    encode_step_kernel(const key_encoder encoder, const kept_rows kept, const std::int64_t* places,
                       const std::int64_t* positions, const append_target* targets, std::int32_t per_row,
                       const key_page page) {
  const append_target target = targets[blockIdx.x];
  if (target.chunk == nullptr) return;
  __shared__ encoded_keys<1> shared;
  const int row = static_cast<int>(blockIdx.x) / per_row, j = static_cast<int>(blockIdx.x) % per_row;
  const row_window window = window_of(kept, places[row]);
  std::uint8_t code[1];
  float scale[1];
  bool nan[1];
  encode<1>(encoder, window, positions[row] / encoder.tokens_per_key + j, 1, shared, code, scale, nan);
  clear_new_page<dim>(targets, static_cast<int>(blockIdx.x), per_row, page);
  key_values(target.chunk, target.entry, page)[threadIdx.x] = static_cast<std::byte>(code[0]);
  if (threadIdx.x != 0) return;
  store_scale(target.chunk, target.entry, page, __float_as_uint(scale[0]));
  if (nan[0]) atomicAdd(encoder.nan_keys, 1ull);
}

}  // namespace

cudaError_t launch_encode_keys(const key_encoder& encoder, const kept_rows& kept, const row_part& part,
                               const row_tensor& from, std::int64_t first_key, std::int64_t count,
                               std::byte* out, cudaStream_t stream) noexcept {
  const row_window window = window_of(kept, part, from);
  encode_rows_kernel<<<static_cast<unsigned>((count + keys_at_once - 1) / keys_at_once), dim, 0, stream>>>(
      encoder, window, first_key, count, out);
  return cudaGetLastError();
}

cudaError_t launch_encode_step_keys(const key_encoder& encoder, const kept_rows& kept,
                                    const std::int64_t* places, const std::int64_t* positions,
                                    const append_target* targets, std::int64_t rows, std::int32_t per_row,
                                    const key_page& page, cudaStream_t stream) noexcept {
  encode_step_kernel<<<static_cast<unsigned>(rows * per_row), dim, 0, stream>>>(
      encoder, kept, places, positions, targets, per_row, page);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
