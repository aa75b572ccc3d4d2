// SPDX-License-Identifier: MIT
#include "src/store/rows.hpp"

#include <cstring>
#include <flashmemory/indexer/index_key.hpp>

#include "src/core/convert.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

template <class T>
void round_row(const float* from, std::byte* to, std::int64_t dim) noexcept {
  auto* const out = reinterpret_cast<T*>(to);
  for (std::int64_t i = 0; i < dim; ++i) from_float(from[i], out[i]);
}

/// Values of row `row` of `rows` [entries, 1, dim] as floats.
void load_row(const const_tensor<3>& rows, std::int64_t row, float* values) noexcept {
  for (std::int64_t i = 0; i < rows.shape[2]; ++i)
    values[i] = load_float(rows.data, rows.type, row * rows.stride[0] + i);
}

/// A layer's piece in kv_format::deepseek_v4: the rows of all entries, their scales, padding; the e4m3 bytes of all
/// index keys, their scales.
struct deepseek_v4_piece {
  deepseek_v4_piece(const kv_geometry& g, std::byte* piece) noexcept
      : each(g.entries_per_chunk),
        rows(piece),
        scales(piece + deepseek_v4::scales_offset(g.entries_per_chunk)),
        keys(piece + deepseek_v4::page_bytes(g.entries_per_chunk)),
        key_scales(keys + each * deepseek_v4::lightning_dim) {}

  std::byte* row(std::int64_t e) const noexcept { return rows + e * deepseek_v4::row_bytes; }
  std::byte* scale(std::int64_t e) const noexcept { return scales + e * deepseek_v4::scale_row_bytes; }
  std::byte* key(std::int64_t e) const noexcept { return keys + e * deepseek_v4::lightning_dim; }
  std::byte* key_scale(std::int64_t e) const noexcept { return key_scales + e * std::int64_t{sizeof(float)}; }

  std::int64_t each;
  std::byte *rows, *scales, *keys, *key_scales;
};

void quantise_rows(const kv_geometry& g, const const_tensor<3>& k, const const_tensor<3>& v,
                   std::int64_t first_row, std::int64_t count, std::int64_t first_entry,
                   std::byte* piece) noexcept {
  const deepseek_v4_piece to(g, piece);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t entry = first_entry + i;
    float values[deepseek_v4::entry_dim], key[deepseek_v4::lightning_dim];
    load_row(k, first_row + i, values);
    load_row(v, first_row + i, key);
    deepseek_v4::quantise_entry(values, to.row(entry), to.scale(entry));
    std::byte packed[deepseek_v4::lightning_key_bytes];
    quantise_key(key, packed, deepseek_v4::lightning_key_floor);
    std::memcpy(to.key(entry), packed, deepseek_v4::lightning_dim);
    std::memcpy(to.key_scale(entry), packed + deepseek_v4::lightning_dim, sizeof(float));
  }
}

}  // namespace

void write_entries(const kv_geometry& g, const const_tensor<3>& k, const const_tensor<3>& v,
                   std::int64_t first_row, std::int64_t count, std::int64_t first_entry,
                   std::byte* piece) noexcept {
  if (g.format == kv_format::deepseek_v4) {
    quantise_rows(g, k, v, first_row, count, first_entry, piece);
    return;
  }
  std::byte* const values = piece + chunk_layout(g).value_offset(0, 0);
  copy_rows(k, first_row, count, g.type, g.entries_per_chunk, first_entry, piece);
  copy_rows(v, first_row, count, g.type, g.entries_per_chunk, first_entry, values);
}

void zero_entries(const kv_geometry& g, std::int64_t first_entry, std::byte* piece) noexcept {
  const std::int64_t each = g.entries_per_chunk;
  if (g.format == kv_format::deepseek_v4) {
    const deepseek_v4_piece of(g, piece);
    const std::int64_t left = each - first_entry;
    std::memset(of.row(first_entry), 0, std::size_t(left * deepseek_v4::row_bytes));
    std::memset(of.scale(first_entry), 0, std::size_t(left * deepseek_v4::scale_row_bytes));
    std::memset(of.key(first_entry), 0, std::size_t(left * deepseek_v4::lightning_dim));
    std::memset(of.key_scale(first_entry), 0, std::size_t(left) * sizeof(float));
    return;
  }
  zero_rows(g.kv_heads, g.key_dim, g.type, each, first_entry, piece);
  zero_rows(g.kv_heads, g.value_dim, g.type, each, first_entry, piece + chunk_layout(g).value_offset(0, 0));
}

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
