// SPDX-License-Identifier: MIT
#pragma once

// The tensor cores of sm_80, one warp's work an instruction; section numbers as in ptx.cuh.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace ptx {

/// c += a b for one 16 x 8 x 16 tile (PTX ISA 9.7.14.5.8). With g = lane / 4 and t = lane % 4 a thread holds
/// of a (16 x 16): row g, columns 2t, 2t + 1 (a0) and 2t + 8, 2t + 9 (a2); row g + 8 likewise (a1, a3);
/// of b (16 x 8): column g, rows 2t, 2t + 1 (b0) and 2t + 8, 2t + 9 (b1);
/// of c (16 x 8): row g, columns 2t, 2t + 1 (c0, c1); row g + 8 likewise (c2, c3).
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1);

/// Of bf16.
template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                                   std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                                   std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Of f16.
template <>
__device__ __forceinline__ void mma<__half>(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                            std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                            std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Two floats rounded to T, the first one in the lower half.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high);

/// To bf16.
template <>
__device__ __forceinline__ std::uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

/// To f16.
template <>
__device__ __forceinline__ std::uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

}  // namespace ptx
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
