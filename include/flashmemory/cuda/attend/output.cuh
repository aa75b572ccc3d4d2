// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <flashmemory/dtype.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

// What is written. Such a policy is a plain struct, passed to kernels by value, with
//
//   store(row, head, d, value)   one element; row = row of the step * query_tokens + token
//   has_lse(), store_lse(row, head, lse)   whether it is wanted, and the natural log of the softmax denominator
//
// and, if it likes,
//
//   store_pair(row, head, d, value, next)  two elements, of even d and the one after it

/// An array of f32, bf16 or f16, and the denominators' logs.
struct dense_output {
  void* out = nullptr;  ///< [rows, query_heads, value_dim], contiguous
  dtype type = dtype::f32;
  std::int32_t query_heads = 0, value_dim = 0;
  float* lse = nullptr;  ///< [rows, query_heads] or null; -inf for a row that attends to nothing
  std::int64_t lse_row_stride = 0, lse_head_stride = 0;  ///< elements

  __device__ __forceinline__ void store(std::int64_t row, std::int32_t head, std::int32_t d,
                                        float value) const {
    const std::int64_t at = (row * query_heads + head) * value_dim + d;
    if (type == dtype::f32)
      static_cast<float*>(out)[at] = value;
    else if (type == dtype::bf16)
      static_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16_rn(value);
    else
      static_cast<__half*>(out)[at] = __float2half_rn(value);
  }
  __device__ __forceinline__ void store_pair(std::int64_t row, std::int32_t head, std::int32_t d, float value,
                                             float next) const {
    const std::int64_t at = (row * query_heads + head) * value_dim + d;  // even, if value_dim is
    if (type == dtype::f32)
      *reinterpret_cast<float2*>(static_cast<float*>(out) + at) = make_float2(value, next);
    else if (type == dtype::bf16)
      *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(out) + at) =
          __floats2bfloat162_rn(value, next);
    else
      *reinterpret_cast<__half2*>(static_cast<__half*>(out) + at) = __floats2half2_rn(value, next);
  }
  __device__ __forceinline__ bool has_lse() const { return lse != nullptr; }
  __device__ __forceinline__ void store_lse(std::int64_t row, std::int32_t head, float value) const {
    lse[row * lse_row_stride + head * lse_head_stride] = value;
  }
};

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
