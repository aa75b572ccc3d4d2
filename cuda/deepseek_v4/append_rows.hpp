// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <flashmemory/store/geometry.hpp>
#include <flashmemory/view.hpp>

#include "cuda/core/row_target.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

/// launch_rows() for kv_format::deepseek_v4: quantises rows of k [.., 1, 512] and v [.., 1, 128], f32 or bf16, into
/// `count` pieces, bit for bit as the host's store does.
cudaError_t launch_entry_rows(const kv_geometry& geometry, const detail::row_target* targets, int count,
                              const const_tensor<3>& k, const const_tensor<3>& v,
                              cudaStream_t stream) noexcept;

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
