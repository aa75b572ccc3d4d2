// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Rows [first_row, first_row + count) that become entries [first_entry, ...) of one layer's piece of a chunk.
struct row_target {
  std::byte* piece;
  std::int64_t first_row;
  std::int32_t first_entry, count;
};

/// What one launch takes, so that the table fits into a kernel's 4 KB of parameters.
inline constexpr int max_row_targets = 128;

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
