// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/cuda/attend.hpp>
#include <flashmemory/cuda/attend/plan.hpp>

#include "cuda/attend/tensors.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What sparse_attend() hands to the library's instances of the kernels.
struct attend_arguments : tensor_arguments {
  const chunk_row* rows = nullptr;
  std::int64_t row_stride = 1;  ///< of `rows`
  attend::work work;
};

/// Whether a geometry is one of those that the library's tensor-core instances are compiled for.
bool has_tensor_core_kernel(const kv_geometry& g) noexcept;

/// A public plan as the headers' own.
attend::plan plan_of(const attend_plan& plan) noexcept;

/// bf16 or f16, key_dim = value_dim of 64, 128 or 256; needs sm_90.
cudaError_t launch_tensor_core(const attend_arguments& arguments, cudaStream_t stream) noexcept;

/// Any dtype and dims.
cudaError_t launch_portable(const attend_arguments& arguments, cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
