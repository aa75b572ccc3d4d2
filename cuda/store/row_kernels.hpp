// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/view.hpp>

#include "cuda/core/row_target.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Writes rows of k and v, f32 or the geometry's dtype with any strides, to `count` pieces.
cudaError_t launch_rows(const kv_geometry& geometry, const row_target* targets, int count,
                        const const_tensor<3>& k, const const_tensor<3>& v, cudaStream_t stream) noexcept;

/// Puts keys [first_key, first_key + count) into their pages; the rest of a page that begins here becomes zero.
cudaError_t launch_keys(const kv_geometry& geometry, std::byte* pages, std::int64_t first_key,
                        const view<const std::byte, 2>& keys, cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
