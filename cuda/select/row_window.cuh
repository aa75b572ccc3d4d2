// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "cuda/core/convert.cuh"
#include "cuda/select/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Where element i of a row lies.
__device__ __forceinline__ std::int64_t element_of(const row_tensor& from, std::int64_t row, std::int64_t i) {
  if (i < from.head_dim) return row * from.row_stride + i;
  return row * from.row_stride + i / from.head_dim * from.head_stride + i % from.head_dim;
}

/// Rows of one sequence: the newest from a tensor, earlier ones from those that are kept, zero before its start.
struct row_window {
  kept_rows kept;
  row_tensor from;
  std::int64_t place = 0;
  std::int64_t position = std::int64_t{1}
                          << 62;  ///< of the tensor's row `first_row`; beyond all tokens if there is none
  std::int64_t first_row = 0;

  __device__ __forceinline__ float at(std::int64_t token, std::int64_t i) const {
    if (token < 0) return 0;
    if (token >= position)
      return load_element(from.data, from.type, element_of(from, first_row + token - position, i));
    return load_element(kept.data, kept.type,
                        (place * kept.capacity + token % kept.capacity) * kept.width + i);
  }
};

inline row_window window_of(const kept_rows& kept, const row_part& part, const row_tensor& from) noexcept {
  row_window window;
  window.kept = kept;
  window.from = from;
  window.place = part.place;
  window.position = part.position;
  window.first_row = part.from;
  return window;
}

/// Of kept rows alone.
__device__ __forceinline__ row_window window_of(const kept_rows& kept, std::int64_t place) {
  row_window window;
  window.kept = kept;
  window.place = place;
  return window;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
