// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/geometry.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Largest dim of pooled keys: a tile of them lies on the stack.
inline constexpr std::int32_t max_pooled_dim = 1024;

/// Floats of a query or a decoded key of `dim` values: whole vectors, the rest zero.
inline constexpr std::int64_t pooled_stride(std::int64_t dim) noexcept { return (dim + 15) / 16 * 16; }

/// Index keys as a store keeps them.
struct pooled_key_pages {
  const std::byte* data = nullptr;
  std::int64_t page_keys = 1;
  index_key_geometry shape;
};

/// out[r * stride + c] = log of the sum over chunk c's keys of exp(query r . key), for chunks [first, first + count). A chunk's
/// value has the same bits whatever else is asked for. NaN where a product is NaN or +Inf.
/// \param queries  [rows, pooled_stride(dim)], the softmax scale in them
void pooled_chunk_logits(const float* queries, std::int64_t rows, const pooled_key_pages& keys,
                         std::int64_t first, std::int64_t count, float* out, std::int64_t stride) noexcept;

/// Makes row[c] of `count` chunks exp(row[c] - the largest of [begin, end)), limited to e^80, and returns the sum over
/// [begin, end) without NaNs; all NaN if there is nothing in it.
float pooled_row_masses(float* row, std::int64_t count, std::int64_t begin, std::int64_t end) noexcept;

/// best[c] = the larger of it and row[c] / total, NaN if either is.
void pooled_fold_row(const float* row, float total, std::int64_t count, float* best) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
