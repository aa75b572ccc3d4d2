// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/indexer/index_key.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Bytes of one index key with its scale.
inline constexpr std::int32_t index_key_bytes = index_key_dim + 4;

/// Keys as a store keeps them: pages of `page_keys` keys, back to back.
struct stored_keys {
  const std::byte* data = nullptr;
  std::int64_t page_keys = 1;
  index_key_layout layout = index_key_layout::interleaved;
};

/// Logits of keys [first, first + count) against `heads` queries [heads, 128] and gates [heads]. Key n's
/// logit has the same bits whatever range it is asked in. A key with a NaN byte or a non-finite scale gets
/// NaN.
void score_keys_range(const float* queries, const float* gates, std::int32_t heads, const stored_keys& keys,
                      std::int64_t first, std::int64_t count, float offset, float* logits) noexcept;

/// out[r] = matrix[r, :] . x for `rows` rows of a row-major matrix.
void multiply_rows(const float* matrix, const float* x, std::int64_t rows, std::int64_t columns,
                   float* out) noexcept;

/// Columns of one panel of pack_panels().
inline constexpr std::int32_t panel_width = 32;

/// Weights [128, hidden] rearranged as [128 / panel_width, hidden, panel_width], which project_keys() reads.
void pack_panels(const float* weights, std::int64_t hidden, float* panels) noexcept;

/// Most keys that project_keys() takes at once.
inline constexpr std::int32_t project_block = 32;

/// out[i] = weights . mean(rows[i * stride .. i * stride + window)), for up to project_block keys. The result
/// for given rows has the same bits whatever `count` and `i` are.
/// \param row_stride floats from one row to the next
/// \param[out] out   [count, 128]
void project_keys(const float* rows, std::int64_t row_stride, std::int32_t stride, std::int32_t window,
                  std::int32_t count, std::int64_t hidden, const float* panels, float* out) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
