// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/core/hadamard.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

/// Four consecutive values of a 128-vector, lane by lane of a warp.
__device__ __forceinline__ void load4(const float* from, float (&x)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ __forceinline__ void load4(const __nv_bfloat16* from, float (&x)[4]) {
  const uint2 v = *reinterpret_cast<const uint2*>(from);
  x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
  x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ __forceinline__ void store4(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void store4(__nv_bfloat16* to, const float (&x)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = __float2bfloat16_rn(x[i]);
}

/// The orthonormal Walsh-Hadamard transform of a warp's vector.
__device__ __forceinline__ void hadamard(float (&q)[4], int lane) {
  hadamard_sums(q, lane);
  for (int i = 0; i < 4; ++i) q[i] /= 11.313708498984761f;
}

/// Turns the last 64 of a warp's 128 values by the position's angles; `turns` [32, 2].
__device__ __forceinline__ void turn(float (&q)[4], int lane, const float* turns, bool back) {
  if (lane < 16) return;
  for (int pair = 0; pair < 2; ++pair) {
    const float cosine = turns[2 * (2 * lane - 32 + pair)];
    const float sine = back ? -turns[2 * (2 * lane - 32 + pair) + 1] : turns[2 * (2 * lane - 32 + pair) + 1];
    const float x = q[2 * pair], y = q[2 * pair + 1];
    q[2 * pair] = __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine));
    q[2 * pair + 1] = __fadd_rn(__fmul_rn(x, sine), __fmul_rn(y, cosine));
  }
}

/// Sum over a warp, the same on all lanes.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

/// Sum over a block of whole warps, at most 32, in a fixed order; the same on all threads.
template <class T>
__device__ __forceinline__ T block_sum(T x) {
  __shared__ T warps[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  T total = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) total += warps[w];
  __syncthreads();
  return total;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
