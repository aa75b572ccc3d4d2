// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/cuda/attend/prompt_plan.hpp>

#include "cuda/attend/tensors.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What prompt_attend() hands to the library's instances of the kernels.
struct prompt_arguments : tensor_arguments {
  const prompt_row* rows = nullptr;
  std::int64_t row_stride = 1;  ///< of `rows`
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
