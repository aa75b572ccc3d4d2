// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Copies rows [first_row, first_row + count) of `rows` [entries, heads, dim] to entries [first_entry, ...)
/// of one layer's K or V block [heads, entries_per_chunk, dim] at `block`, rounding f32 to `stored` if that
/// is narrower.
void copy_rows(const const_tensor<3>& rows, std::int64_t first_row, std::int64_t count, dtype stored,
               std::int64_t entries_per_chunk, std::int64_t first_entry, std::byte* block) noexcept;

/// Zeroes entries [first_entry, entries_per_chunk) of such a block.
void zero_rows(std::int64_t heads, std::int64_t dim, dtype stored, std::int64_t entries_per_chunk,
               std::int64_t first_entry, std::byte* block) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
