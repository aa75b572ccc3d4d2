// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Writes rows [first_row, first_row + count) of k [entries, kv_heads, key_dim] and v likewise to entries [first_entry,
/// ...) of one layer's piece of a chunk, in the geometry's format.
void write_entries(const kv_geometry& geometry, const const_tensor<3>& k, const const_tensor<3>& v,
                   std::int64_t first_row, std::int64_t count, std::int64_t first_entry,
                   std::byte* piece) noexcept;

/// Zeroes entries [first_entry, entries_per_chunk) of one layer's piece.
void zero_entries(const kv_geometry& geometry, std::int64_t first_entry, std::byte* piece) noexcept;

/// Calls f(offset, bytes) for the parts of a layer's piece that no entry covers.
template <class F>
void for_each_padding(const chunk_layout& layout, const F& f) noexcept {
  const kv_geometry& g = layout.geometry;
  if (g.format == kv_format::deepseek_v4) {
    const std::size_t entries = std::size_t(g.entries_per_chunk) * std::size_t(deepseek_v4::entry_bytes);
    if (layout.key_block_bytes() > entries) f(entries, layout.key_block_bytes() - entries);
  }
  const std::size_t raw = std::size_t(g.kv_heads) * (layout.key_block_bytes() + layout.value_block_bytes());
  if (layout.layer_bytes() > raw) f(raw, layout.layer_bytes() - raw);
}

/// Calls f(offset, bytes) for the parts of a layer's piece that hold entries [first_entry, entries_per_chunk).
template <class F>
void for_each_tail(const chunk_layout& layout, std::int64_t first_entry, const F& f) noexcept {
  const kv_geometry& g = layout.geometry;
  const std::size_t each = std::size_t(g.entries_per_chunk), first = std::size_t(first_entry),
                    left = each - first;
  const std::size_t values = layout.value_offset(0, 0);
  if (g.format == kv_format::deepseek_v4) {
    const std::size_t row = std::size_t(deepseek_v4::row_bytes),
                      scale = std::size_t(deepseek_v4::scale_row_bytes);
    const std::size_t key = std::size_t(deepseek_v4::lightning_dim);
    f(first * row, left * row);
    f(std::size_t(deepseek_v4::scales_offset(g.entries_per_chunk)) + first * scale, left * scale);
    f(values + first * key, left * key);
    f(values + each * key + first * sizeof(float), left * sizeof(float));
    return;
  }
  const std::size_t k = std::size_t(g.key_dim) * size_of(g.type),
                    v = std::size_t(g.value_dim) * size_of(g.type);
  for (std::size_t h = 0; h < std::size_t(g.kv_heads); ++h) {
    f((h * each + first) * k, left * k);
    f(values + (h * each + first) * v, left * v);
  }
}

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
