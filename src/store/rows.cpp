// SPDX-License-Identifier: MIT
#include "store/rows.hpp"

#include <cstring>

#include "core/convert.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

template <class T>
void round_row(const float* from, std::byte* to, std::int64_t dim) noexcept {
  auto* const out = reinterpret_cast<T*>(to);
  for (std::int64_t i = 0; i < dim; ++i) from_float(from[i], out[i]);
}

}  // namespace

void copy_rows(const const_tensor<3>& rows, std::int64_t first_row, std::int64_t count, dtype stored,
               std::int64_t entries_per_chunk, std::int64_t first_entry, std::byte* block) noexcept {
  const std::int64_t heads = rows.shape[1];
  const std::int64_t dim = rows.shape[2];
  const auto element = static_cast<std::int64_t>(size_of(rows.type));
  const std::int64_t row_bytes = dim * static_cast<std::int64_t>(size_of(stored));
  const auto* const data = static_cast<const std::byte*>(rows.data);
  for (std::int64_t e = 0; e < count; ++e) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::byte* const from = data + ((first_row + e) * rows.stride[0] + h * rows.stride[1]) * element;
      std::byte* const to = block + (h * entries_per_chunk + first_entry + e) * row_bytes;
      if (rows.type == stored)
        std::memcpy(to, from, std::size_t(row_bytes));
      else if (stored == dtype::bf16)
        round_row<bfloat16>(reinterpret_cast<const float*>(from), to, dim);
      else
        round_row<float16>(reinterpret_cast<const float*>(from), to, dim);
    }
  }
}

void zero_rows(std::int64_t heads, std::int64_t dim, dtype stored, std::int64_t entries_per_chunk,
               std::int64_t first_entry, std::byte* block) noexcept {
  const std::int64_t row_bytes = dim * static_cast<std::int64_t>(size_of(stored));
  const std::int64_t entries = entries_per_chunk - first_entry;
  for (std::int64_t h = 0; h < heads; ++h)
    std::memset(block + (h * entries_per_chunk + first_entry) * row_bytes, 0,
                std::size_t(entries * row_bytes));
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
