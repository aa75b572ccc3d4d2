// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>

#include "cuda/train/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Blocks for `count` things, so many in each.
inline unsigned blocks(std::int64_t count, std::int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

/// Calls `launch` with a zero of the type that the call's operands have. \returns what the launch says
template <class Launch>
cudaError_t by_operand(const train_call& call, const Launch& launch) {
  if (call.bf16)
    launch(__nv_bfloat16());
  else
    launch(0.0f);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
