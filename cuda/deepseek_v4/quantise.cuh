// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/deepseek_v4.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

/// e4m3 codes of two floats that are not infinite, to nearest even, saturated; the first in the low byte. NaN becomes
/// 0x7f.
__device__ __forceinline__ std::uint32_t narrow(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  std::uint32_t codes = 0;
  const float pair[2] = {low, high};
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t bits = __float_as_uint(pair[i]), magnitude = bits & 0x7fffffffu;
    std::uint32_t code, sign = bits >> 24 & 0x80u;
    if (magnitude > 0x7f800000u) {
      code = 0x7f;
      sign = 0;
    } else if (magnitude >= 0x43e00000u) {  // 448 and beyond
      code = 0x7e;
    } else if (magnitude < 0x3c800000u) {  // subnormal: one ulp of 2^14 is 2^-9, so the adder rounds
      code = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 16384.0f)) - 0x46800000u;
    } else {
      code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
    }
    codes |= (sign | code) << 8 * i;
  }
  return codes;
#endif
}

__device__ __forceinline__ void load16(const float* from, float (&x)[16]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(from) + i);
    x[4 * i] = v.x;
    x[4 * i + 1] = v.y;
    x[4 * i + 2] = v.z;
    x[4 * i + 3] = v.w;
  }
}

__device__ __forceinline__ void load16(const __nv_bfloat16* from, float (&x)[16]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(from) + i);
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[8 * i + 2 * j] = __uint_as_float(words[j] << 16);
      x[8 * i + 2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
    }
  }
}

/// Quantises one entry, bit for bit as quantise_entry() does. By a whole warp, 16 values per lane in order: lanes 4g to
/// 4g + 3 hold group g, the last four the rotated values. row is 16-byte aligned, scales 8.
__device__ __forceinline__ void write_entry(const float (&x)[16], std::byte* row, std::byte* scale_row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  std::uint32_t amax = __float_as_uint(1e-4f);
#pragma unroll
  for (int i = 0; i < 16; ++i) amax = max(amax, __float_as_uint(x[i]) & 0x7fffffffu);
  amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 1));
  amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 2));
  const bool finite = amax < 0x7f800000u;
  // ceil(log2(amax / 448)) + 127: 448 is 1.75 * 2^8
  const std::uint32_t byte = finite ? (amax >> 23) - 8 + ((amax & 0x7fffffu) > 0x600000u ? 1 : 0) : 255;

  std::uint32_t scales[2] = {0, 0};
#pragma unroll
  for (int g = 0; g < scale_groups; ++g)
    scales[g / 4] |= __shfl_sync(0xffffffffu, byte, 4 * g) << 8 * (g % 4);
  if (lane == 0) *reinterpret_cast<uint2*>(scale_row) = make_uint2(scales[0], scales[1]);

  if (lane < nope_dim / 16) {
    const float inverse = __uint_as_float((254 - byte) << 23);
    std::uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = finite ? narrow(__fmul_rn(x[4 * i], inverse), __fmul_rn(x[4 * i + 1], inverse)) |
                              narrow(__fmul_rn(x[4 * i + 2], inverse), __fmul_rn(x[4 * i + 3], inverse)) << 16
                        : 0x7f7f7f7fu;
    }
    *reinterpret_cast<uint4*>(row + lane * 16) = make_uint4(codes[0], codes[1], codes[2], codes[3]);
  } else {
    std::uint32_t halves[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t bits = __float_as_uint(x[i]);
      const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
      halves[i] = (nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    }
    auto* to = reinterpret_cast<uint4*>(row + nope_dim + (lane - nope_dim / 16) * 32);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t* h = halves + 8 * i;
      to[i] = make_uint4(h[0] | h[1] << 16, h[2] | h[3] << 16, h[4] | h[5] << 16, h[6] | h[7] << 16);
    }
  }
}

/// Quantises one index key, bit for bit as quantise_key() does with a floor of lightning_key_floor. By a whole warp, 4
/// values per lane in order. codes and scale are 4-byte aligned.
__device__ __forceinline__ void write_index_key(const float (&x)[4], std::byte* codes, std::byte* scale) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float largest = lightning_key_floor;
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(x[i]));  // NaN loses
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  const float step = __fdiv_rn(largest, 448.0f);
  const std::uint32_t word = narrow(__fdiv_rn(x[0], step), __fdiv_rn(x[1], step)) |
                             narrow(__fdiv_rn(x[2], step), __fdiv_rn(x[3], step)) << 16;
  *reinterpret_cast<std::uint32_t*>(codes + lane * 4) = word;
  if (lane == 0) *reinterpret_cast<float*>(scale) = step;
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
