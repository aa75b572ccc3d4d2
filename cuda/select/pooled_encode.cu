// SPDX-License-Identifier: MIT
#include <cuda_fp8.h>

#include "cuda/core/convert.cuh"
#include "cuda/core/key_page.cuh"
#include "cuda/select/pooled_keys.hpp"
#include "cuda/select/row_window.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 128;
constexpr int most_dim = 1024;  // of pooled_keys_config

struct pooled_values {
  float mean[most_dim], projected[most_dim];
  float largest[threads / 32];
};

constexpr float largest_float = 3.402823466e38f;

/// As src/indexer/e2m1.hpp has it.
__device__ __forceinline__ unsigned e2m1_code(float value) {
  const unsigned sign = value < 0 ? 8 : 0;
  const float x = fabsf(value);
  const unsigned code = x <= 0.25f   ? 0
                        : x < 0.75f  ? 1
                        : x <= 1.25f ? 2
                        : x < 1.75f  ? 3
                        : x <= 2.5f  ? 4
                        : x < 3.5f   ? 5
                        : x <= 5.0f  ? 6
                                     : 7;
  return sign | code;
}

__device__ __forceinline__ unsigned mx_exponent_of(float largest) {
  const unsigned bits = __float_as_uint(largest) & 0x7fffffffu;
  if (bits >= 0x7f800000u) return 0xff;
  const unsigned exponent = (bits >> 23) + ((bits & 0x7fffffu) > 0x600000u ? 1 : 0);
  return exponent > 2 ? exponent - 2 : 0;
}

__device__ __forceinline__ float mx_unit(unsigned exponent) {
  return __uint_as_float(exponent == 0 ? 0x00400000u : exponent << 23);
}

/// NaN if either is.
__device__ __forceinline__ float larger(float a, float b) { return a != a ? a : b != b ? b : fmaxf(a, b); }

__device__ float largest_magnitude(const float* values, int count, float* shared) {
  float largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads)
    largest = larger(largest, fabsf(values[i]));
  for (int step = 16; step > 0; step /= 2) largest = larger(largest, __shfl_xor_sync(~0u, largest, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int w = 0; w < threads / 32; ++w) largest = larger(largest, shared[w]);
  return largest;
}

/// One key of a block's shared values to where it lies: the bytes that quantise_index_key() makes of them, all zero if it is
/// not finite. `base` is a page, or rows of keys where page.planar is false.
__device__ void store_key(const float* values, const pooled_encoder& encoder, std::byte* base,
                          std::int32_t key, const key_page& page, float* shared) {
  const int thread = static_cast<int>(threadIdx.x), dim = encoder.dim;
  std::byte* const out = key_values(base, key, page);
  std::byte* const scales = key_scales(base, key, page);
  const float largest = largest_magnitude(values, dim, shared);
  bool nan = !(largest <= largest_float);
  if (page.type == index_key_type::f16 && !(largest < 65520.0f)) nan = true;
  // Rounded to bf16, what is beyond its largest number is Inf.
  if (page.type == index_key_type::bf16 && (bf16_bits(largest) & 0x7f80u) == 0x7f80u) nan = true;
  if (page.type == index_key_type::e4m3 || page.type == index_key_type::int8) {
    const bool e4m3 = page.type == index_key_type::e4m3;
    const float scale = nan ? 0.0f : largest / (e4m3 ? 448.0f : 127.0f);
    for (int i = thread; i < dim; i += threads) {
      std::uint8_t code = 0;
      if (scale > 0 && e4m3) code = __nv_cvt_float_to_fp8(values[i] / scale, __NV_SATFINITE, __NV_E4M3);
      if (scale > 0 && !e4m3)
        code = static_cast<std::uint8_t>(static_cast<std::int8_t>(rintf(values[i] / scale)));
      out[i] = static_cast<std::byte>(code);
    }
    if (thread == 0) store_scale(base, key, page, __float_as_uint(scale));
  } else if (page.type == index_key_type::mxfp4) {
    const int lane = thread % 32;
    for (int block = thread / 32; block < dim / 32; block += threads / 32) {
      const float value = nan ? 0.0f : values[block * 32 + lane];
      float most = fabsf(value);
      for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
      const unsigned exponent = nan ? 0 : mx_exponent_of(most);
      const unsigned code = nan ? 0 : e2m1_code(value / mx_unit(exponent));
      const unsigned high = __shfl_down_sync(~0u, code, 1);
      if (lane % 2 == 0) out[block * 16 + lane / 2] = static_cast<std::byte>(code | high << 4);
      if (lane == 0) scales[block] = static_cast<std::byte>(exponent);
    }
  } else {
    for (int i = thread; i < dim; i += threads) {
      const std::uint16_t bits = nan                                ? 0
                                 : page.type == index_key_type::f16 ? f16_bits(values[i])
                                                                    : bf16_bits(values[i]);
      out[2 * i] = static_cast<std::byte>(bits & 0xff);
      out[2 * i + 1] = static_cast<std::byte>(bits >> 8);
    }
  }
  if (nan && thread == 0) atomicAdd(encoder.nan_keys, 1ull);
}

/// What one key is before it is quantised, in pooled_keys_indexer's order but for the projection's sums.
__device__ const float* pooled(const pooled_encoder& encoder, const row_window& window, std::int64_t key,
                               pooled_values& shared) {
  const std::int64_t first = key * encoder.tokens_per_key,
                     from = std::int64_t{encoder.kv_head} * encoder.key_dim;
  for (int i = static_cast<int>(threadIdx.x); i < encoder.key_dim; i += threads) {
    float sum = window.at(first, from + i);
    for (int t = 1; t < encoder.tokens_per_key; ++t) sum += window.at(first + t, from + i);
    shared.mean[i] = sum / static_cast<float>(encoder.tokens_per_key);
  }
  __syncthreads();
  if (encoder.projection == nullptr) return shared.mean;
  for (int d = static_cast<int>(threadIdx.x); d < encoder.dim; d += threads) {
    float sum = 0;
    for (int i = 0; i < encoder.key_dim; ++i)
      sum = fmaf(encoder.projection[std::int64_t{i} * encoder.dim + d], shared.mean[i], sum);
    shared.projected[d] = sum;
  }
  __syncthreads();
  return shared.projected;
}

__global__ void __launch_bounds__(threads)
    encode_pooled_kernel(const pooled_encoder encoder, const row_window window, std::int64_t first_key,
                         std::byte* out) {
  __shared__ pooled_values shared;
  key_page rows = encoder.page;
  rows.planar = false;
  const float* const values = pooled(encoder, window, first_key + std::int64_t{blockIdx.x}, shared);
  store_key(values, encoder, out, static_cast<std::int32_t>(blockIdx.x), rows, shared.largest);
}

__global__ void __launch_bounds__(threads)
    encode_step_pooled_kernel(const pooled_encoder encoder, const kept_rows kept, const std::int64_t* places,
                              const std::int64_t* positions, const append_target* targets,
                              std::int32_t per_row) {
  const append_target target = targets[blockIdx.x];
  if (target.chunk == nullptr) return;
  __shared__ pooled_values shared;
  const int row = static_cast<int>(blockIdx.x) / per_row, j = static_cast<int>(blockIdx.x) % per_row;
  const row_window window = window_of(kept, places[row]);
  const float* const values = pooled(encoder, window, positions[row] / encoder.tokens_per_key + j, shared);
  clear_new_page<threads>(targets, static_cast<int>(blockIdx.x), per_row, encoder.page);
  store_key(values, encoder, target.chunk, target.entry, encoder.page, shared.largest);
}

}  // namespace

cudaError_t launch_encode_pooled(const pooled_encoder& encoder, const kept_rows& kept, const row_part& part,
                                 const row_tensor& from, std::int64_t first_key, std::int64_t count,
                                 std::byte* out, cudaStream_t stream) noexcept {
  encode_pooled_kernel<<<static_cast<unsigned>(count), threads, 0, stream>>>(
      encoder, window_of(kept, part, from), first_key, out);
  return cudaGetLastError();
}

cudaError_t launch_encode_step_pooled(const pooled_encoder& encoder, const kept_rows& kept,
                                      const std::int64_t* places, const std::int64_t* positions,
                                      const append_target* targets, std::int64_t rows, std::int32_t per_row,
                                      cudaStream_t stream) noexcept {
  encode_step_pooled_kernel<<<static_cast<unsigned>(rows * per_row), threads, 0, stream>>>(
      encoder, kept, places, positions, targets, per_row);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
