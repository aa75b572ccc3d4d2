// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <flashmemory/dtype.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

__device__ __forceinline__ float load_element(const void* data, dtype type, std::int64_t at) {
  if (type == dtype::f32) return static_cast<const float*>(data)[at];
  if (type == dtype::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
  return __half2float(static_cast<const __half*>(data)[at]);
}

/// The bits that src/core/convert.hpp makes of a float: nearest even, NaN keeps its upper bits.
__device__ __forceinline__ std::uint16_t bf16_bits(float value) {
  const std::uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ std::uint16_t f16_bits(float value) {
  if (value != value) return static_cast<std::uint16_t>(((__float_as_uint(value) >> 16) & 0x8000u) | 0x7e00u);
  return __half_as_ushort(__float2half_rn(value));
}

__device__ __forceinline__ void store_element(void* data, dtype type, std::int64_t at, float value) {
  if (type == dtype::f32)
    static_cast<float*>(data)[at] = value;
  else
    static_cast<std::uint16_t*>(data)[at] = type == dtype::bf16 ? bf16_bits(value) : f16_bits(value);
}

/// Element `from` of one array to element `to` of another; the bits where the types agree.
__device__ __forceinline__ void copy_element(void* out, dtype out_type, std::int64_t to, const void* in,
                                             dtype in_type, std::int64_t from) {
  if (out_type != in_type)
    store_element(out, out_type, to, load_element(in, in_type, from));
  else if (in_type == dtype::f32)
    static_cast<std::uint32_t*>(out)[to] = static_cast<const std::uint32_t*>(in)[from];
  else
    static_cast<std::uint16_t*>(out)[to] = static_cast<const std::uint16_t*>(in)[from];
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
