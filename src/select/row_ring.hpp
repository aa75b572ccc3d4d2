// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <flashmemory/view.hpp>

#include "src/core/convert.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// One row of hidden states, queries or keys as floats: its heads, one after another.
inline void load_row(const_tensor<3> source, std::int64_t row, float* out) noexcept {
  const std::int64_t width = source.shape[2];
  for (std::int64_t head = 0; head < source.shape[1]; ++head, out += width) {
    const std::int64_t start = row * source.stride[0] + head * source.stride[1];
    if (source.type == dtype::f32 && source.stride[2] == 1) {
      std::memcpy(out, static_cast<const float*>(source.data) + start, std::size_t(width) * sizeof(float));
      continue;
    }
    for (std::int64_t i = 0; i < width; ++i)
      out[i] = load_float(source.data, source.type, start + i * source.stride[2]);
  }
}

/// Row 0 of contiguous f32 rows, or null if they are something else.
inline const float* plain_rows(const_tensor<3> rows) noexcept {
  const bool heads_follow = rows.shape[1] == 1 || rows.stride[1] == rows.shape[2];
  return rows.type == dtype::f32 && rows.stride[2] == 1 && heads_follow &&
                 rows.stride[0] == rows.shape[1] * rows.shape[2]
             ? static_cast<const float*>(rows.data)
             : nullptr;
}

/// First token that the key after `tokens` tokens sees; negative ones are the zeros before the start.
inline std::int64_t first_needed(std::int64_t tokens, std::int64_t tokens_per_key,
                                 std::int64_t window) noexcept {
  return (tokens / tokens_per_key + 1) * tokens_per_key - window;
}

/// The rows of the newest `capacity` tokens of one tap; the memory is the owner's. Of a level 1 that keeps its rows
/// elsewhere only the books, with `rows` null.
struct row_ring {
  float* rows = nullptr;  ///< [capacity, width], token t at t % capacity
  std::int64_t width = 0;
  std::int64_t capacity = 0;
  std::int64_t begin = 0;  ///< no older token's row is there
  std::int64_t end = 0;    ///< one past the newest token

  std::int64_t first() const noexcept { return std::max(begin, end - capacity); }
  bool has(std::int64_t token) const noexcept { return token >= first() && token < end; }
  float* row(std::int64_t token) const noexcept { return rows + token % capacity * width; }

  /// Tokens [position, position + tokens) are seen now. Going back forgets what followed; going forward over a gap
  /// forgets what was before it.
  void advance(std::int64_t position, std::int64_t tokens) noexcept {
    // Rows older than first() are overwritten; after a rollback they must not be taken for present again.
    begin = position > end || position < first() ? position : first();
    end = position + tokens;
  }

  /// Rows [from, from + tokens) of `source` become tokens [position, position + tokens).
  void push(std::int64_t position, std::int64_t tokens, const_tensor<3> source, std::int64_t from) noexcept {
    advance(position, tokens);
    for (std::int64_t i = std::max<std::int64_t>(0, tokens - capacity); i < tokens; ++i)
      load_row(source, from + i, row(position + i));
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
