// SPDX-License-Identifier: MIT
#include "cuda/select/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr float infinity = __builtin_huge_valf();

/// log(mean p / (1 - mean p)) with p = sigmoid(z), as src/indexer/ensemble.cpp has it.
__device__ float mean_log_odds(const float* z, std::int32_t count, std::int64_t stride) {
  constexpr float far = 40;
  float smallest = z[0], largest = z[0];
  for (std::int32_t i = 1; i < count; ++i) {
    smallest = fminf(smallest, z[i * stride]);
    largest = fmaxf(largest, z[i * stride]);
  }
  const auto log_mean_exp = [&](float sign, float reference) {
    float sum = 0;
    for (std::int32_t i = 0; i < count; ++i) sum += expf(sign * (z[i * stride] - reference));
    return logf(sum / static_cast<float>(count));
  };
  if (largest < -far) return isinf(largest) ? largest : largest + log_mean_exp(1, largest);
  if (smallest > far) return isinf(smallest) ? smallest : smallest - log_mean_exp(-1, smallest);
  float yes = 0, no = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const float e = expf(-fabsf(z[i * stride])), near = 1 / (1 + e);
    yes += z[i * stride] > 0 ? near : e * near;
    no += z[i * stride] > 0 ? e * near : near;
  }
  return logf(yes / no);
}

__device__ float combined(ensemble how, const float* z, std::int32_t count, std::int64_t stride) {
  float largest = z[0];
  bool nan = false;
  for (std::int32_t i = 0; i < count; ++i) {
    nan = nan || isnan(z[i * stride]);
    largest = fmaxf(largest, z[i * stride]);
  }
  if (nan) return __uint_as_float(0x7fc00000u);
  return how == ensemble::max || count == 1 ? largest : mean_log_odds(z, count, stride);
}

/// A warp per chunk; a fixed tree joins its lanes, NaN if any key is.
__global__ void __launch_bounds__(128)
    reduce_chunks_kernel(const float* logits, std::int32_t retrievers, std::int64_t stride,
                         std::int64_t chunks, std::int32_t keys_per_chunk, ensemble combine,
                         key_reduction reduce, float* scores) {
  const std::int64_t chunk = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (chunk >= chunks) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  float value = reduce == key_reduction::max ? -infinity : 0.0f;
  bool nan = false;
  for (std::int32_t k = lane; k < keys_per_chunk; k += 32) {
    const float z = combined(combine, logits + chunk * keys_per_chunk + k, retrievers, stride);
    nan = nan || isnan(z);
    if (reduce == key_reduction::max) {
      value = fmaxf(value, z);
    } else if (reduce == key_reduction::count_positive) {
      value += z > 0 ? 1.0f : 0.0f;
    } else {
      const float e = expf(-fabsf(z));
      value += z > 0 ? 1 / (1 + e) : e / (1 + e);
    }
  }
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, value, step);
    value = reduce == key_reduction::max ? fmaxf(value, other) : value + other;
  }
  nan = __any_sync(~0u, nan);
  if (lane == 0) scores[chunk] = nan ? __uint_as_float(0x7fc00000u) : value;
}

}  // namespace

cudaError_t launch_reduce_chunks(const float* logits, std::int32_t retrievers, std::int64_t stride,
                                 std::int64_t chunks, std::int32_t keys_per_chunk, ensemble combine,
                                 key_reduction reduce, float* scores, cudaStream_t stream) noexcept {
  reduce_chunks_kernel<<<static_cast<unsigned>((chunks + 3) / 4), 128, 0, stream>>>(
      logits, retrievers, stride, chunks, keys_per_chunk, combine, reduce, scores);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
