// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/cuda/attend/prompt_plan.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What prompt_attend() hands to the library's instances of the kernels. Strides count elements.
struct prompt_arguments {
  const prompt_row* rows = nullptr;
  const void* q = nullptr;
  void* out = nullptr;
  float* lse = nullptr;          ///< or null
  const float* sinks = nullptr;  ///< or null
  std::int64_t row_stride = 1;   ///< of `rows`
  std::int64_t q_row_stride = 0, q_head_stride = 0;
  std::int64_t lse_row_stride = 0, lse_head_stride = 0, sink_stride = 0;
  std::int64_t key_offset = 0, value_offset = 0;            ///< bytes, of head 0 of the layer in a chunk
  std::int64_t key_block_bytes = 0, value_block_bytes = 0;  ///< of one head
  dtype type = dtype::f32, out_type = dtype::f32;
  float softmax_scale = 1;
  float soft_cap = 0;  ///< or 0
  attend::prompt_work work;
};

/// Whether the build has the kernels for sm_90a.
bool has_prompt_hopper() noexcept;

/// bf16, key_dim = value_dim of 64, 128 or 256; needs sm_90.
cudaError_t launch_prompt_bf16(const prompt_arguments& arguments, cudaStream_t stream) noexcept;
/// The same with f16.
cudaError_t launch_prompt_f16(const prompt_arguments& arguments, cudaStream_t stream) noexcept;

/// Any dtype and dims.
cudaError_t launch_prompt_portable(const prompt_arguments& arguments, cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
