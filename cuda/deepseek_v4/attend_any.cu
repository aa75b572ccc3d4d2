// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <flashmemory/cuda/core/ptx.cuh>

#include "cuda/deepseek_v4/pool.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

constexpr int warps = 8;

__device__ __forceinline__ float widen_code(std::uint32_t code) {
  const std::uint32_t magnitude = code & 0x7f;
  const float value = magnitude == 0x7f ? __uint_as_float(0x7fc00000u)
                      : magnitude < 8   ? static_cast<float>(magnitude) * 0x1p-9f
                                        : __uint_as_float((magnitude + (120u << 3)) << 20);
  return code & 0x80 ? -value : value;
}

/// For devices without wgmma, and to check the fast kernel by. A warp owns a head of a query row, a lane 16 of the
/// dims; entries come one at a time through the cache, 584 bytes per entry and head. The result is that of the
/// online softmax in list order.
__global__ void __launch_bounds__(32 * warps)
    attend_any_kernel(const __grid_constant__ attend_params params) {
  const std::int64_t row = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y) * warps + static_cast<int>(threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t at = (row * params.heads + head) * entry_dim + lane * 16;
  const auto* q = static_cast<const __nv_bfloat16*>(params.q) + at;
  float query[16], sum[16], maximum = -INFINITY, weight = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    query[i] = __bfloat162float(q[i]);
    sum[i] = 0;
  }
  const int window = count_of(params.window, row), count = window + count_of(params.selected, row);
  for (int i = 0; i < count; ++i) {
    const device_place place =
        i < window ? find(params.window_pool, __ldg(params.window.entries + row * params.window.stride + i))
                   : find(params.selected_pool,
                          __ldg(params.selected.entries + row * params.selected.stride + (i - window)));
    if (place.row == nullptr) continue;
    float entry[16];
    if (lane < nope_dim / 16) {
      const uint4 codes = *reinterpret_cast<const uint4*>(place.row + lane * 16);
      const std::uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
      const auto byte = static_cast<std::uint32_t>(place.scales[lane / 4]);
      const float scale = __uint_as_float(byte == 0 ? 0x00400000u : byte == 255 ? 0x7fc00000u : byte << 23);
#pragma unroll
      for (int j = 0; j < 16; ++j) entry[j] = widen_code(words[j / 4] >> 8 * (j % 4) & 0xff) * scale;
    } else {
      const auto* from = reinterpret_cast<const std::uint16_t*>(place.row + nope_dim) + (lane - 28) * 16;
#pragma unroll
      for (int j = 0; j < 16; ++j) entry[j] = __uint_as_float(std::uint32_t{from[j]} << 16);
    }
    float logit = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) logit += query[j] * entry[j];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) logit += __shfl_xor_sync(0xffffffffu, logit, step);
    logit *= params.scale_log2;
    const float top = fmaxf(maximum, logit);
    const float reference = top == -INFINITY ? 0 : top;
    const float factor = ptx::exp2(maximum - reference), p = ptx::exp2(logit - reference);
    maximum = top;
    weight = weight * factor + p;
#pragma unroll
    for (int j = 0; j < 16; ++j) sum[j] = sum[j] * factor + p * entry[j];
  }
  const float sink = params.sinks != nullptr ? __ldg(params.sinks + head) * 1.4426950408889634f : -INFINITY;
  const float top = fmaxf(maximum, sink);
  const float reference = top == -INFINITY ? 0 : top;
  const float factor = ptx::exp2(maximum - reference);
  const float total = weight * factor + (sink == INFINITY ? INFINITY : ptx::exp2(sink - reference));
  const float norm = total == 0 ? 0 : factor / total;
  auto* out = static_cast<__nv_bfloat16*>(params.out) + at;
#pragma unroll
  for (int i = 0; i < 16; ++i) out[i] = __float2bfloat16_rn(sum[i] * norm);
  if (params.lse != nullptr && lane == 0) {
    params.lse[row * params.heads + head] =
        total == 0 ? -INFINITY : (reference + log2f(total)) * 0.6931471805599453f;
  }
}

}  // namespace

int launch_attend_any(const attend_params& params, std::int64_t rows, void* stream) noexcept {
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(params.heads / warps));
  attend_any_kernel<<<grid, 32 * warps, 0, static_cast<cudaStream_t>(stream)>>>(params);
  return cudaGetLastError();
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
