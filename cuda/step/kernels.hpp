// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <flashmemory/store/geometry.hpp>

#include "cuda/core/append_target.hpp"
#include "cuda/core/key_page.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Rows of K or V [rows, heads, dim] on their way to chunks; strides count elements.
struct row_source {
  const void* data = nullptr;
  dtype type = dtype::f32;
  std::int64_t row_stride = 0, head_stride = 0;
  std::int32_t dim = 0;
  std::int64_t offset = 0;      ///< bytes from a chunk's start to head 0 of the layer's block
  std::int64_t head_bytes = 0;  ///< of one head's block
};

/// Row targets[i].row of both to entry targets[i].entry of its chunk, rounded to `stored` as the host does.
cudaError_t launch_append(const append_target* targets, std::int64_t count, std::int32_t heads,
                          const row_source& k, const row_source& v, dtype stored,
                          cudaStream_t stream) noexcept;

/// Key targets[i].row of `keys` [rows * per_row, key_bytes] to key targets[i].entry of the page targets[i].chunk; the
/// rest of a page whose first key it is becomes zero. A key that is no number is stored as zero and counted.
/// \param targets  [rows * per_row]; those of a row ascend by key
cudaError_t launch_append_keys(const append_target* targets, std::int64_t rows, std::int32_t per_row,
                               const std::byte* keys, const key_page& page, unsigned long long* nan_keys,
                               cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
