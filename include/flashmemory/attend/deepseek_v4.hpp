// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/parallel.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// The KV format of DeepSeek-V4 and attention over it. One entry is 512 values that serve as key and as value: 448
/// without position, in e4m3 with one power-of-two scale per 64, and 64 rotated ones in bf16.
namespace deepseek_v4 {

inline constexpr std::int32_t entry_dim = 512;        ///< values of an entry
inline constexpr std::int32_t nope_dim = 448;         ///< of which the first are e4m3
inline constexpr std::int32_t rope_dim = 64;          ///< and the last bf16, already rotated
inline constexpr std::int32_t group_dim = 64;         ///< values that share a scale
inline constexpr std::int32_t scale_groups = 7;       ///< of an entry
inline constexpr std::int64_t row_bytes = 576;        ///< 448 e4m3, then 64 bf16
inline constexpr std::int64_t scale_row_bytes = 8;    ///< 7 ue8m0 (2^(byte - 127), 255 = NaN), then a zero
inline constexpr std::int64_t entry_bytes = 584;      ///< what an entry takes in all
inline constexpr std::int32_t window_entries = 256;   ///< of a page of the sliding-window pool
inline constexpr std::int32_t csa_entries = 64;       ///< of a page of entries compressed from 4 tokens
inline constexpr std::int32_t hca_entries = 2;        ///< of a page of entries compressed from 128 tokens
inline constexpr std::int32_t max_heads = 128;        ///< query heads that one call takes, at most
inline constexpr std::int32_t index_dim = 128;        ///< values of an entry's index key
inline constexpr std::int64_t index_key_bytes = 132;  ///< its e4m3 bytes and its f32 scale
inline constexpr float index_key_floor = 1e-4f;  ///< smallest amax when it is quantised, see quantise_key()

/// Where a page's scales start: all rows come first.
constexpr std::int64_t scales_offset(std::int32_t entries_per_page) noexcept {
  return row_bytes * entries_per_page;
}

/// Bytes of a page: rows and scales, padded to a multiple of row_bytes.
constexpr std::int64_t page_bytes(std::int32_t entries_per_page) noexcept {
  return (entry_bytes * entries_per_page + row_bytes - 1) / row_bytes * row_bytes;
}

/// Where the row of entry `slot` of a page starts.
constexpr std::int64_t row_offset(std::int32_t slot) noexcept { return row_bytes * slot; }

/// Where the scales of entry `slot` of a page start.
constexpr std::int64_t scale_offset(std::int32_t entries_per_page, std::int32_t slot) noexcept {
  return scales_offset(entries_per_page) + scale_row_bytes * slot;
}

static_assert(page_bytes(csa_entries) == 37440 && scales_offset(csa_entries) == 36864, "");
static_assert(page_bytes(hca_entries) == 1728 && scales_offset(hca_entries) == 1152, "");
static_assert(page_bytes(window_entries) == 149760 && scales_offset(window_entries) == 147456, "");
static_assert(nope_dim + 2 * rope_dim == row_bytes && scale_groups * group_dim == nope_dim, "");

/// Quantises one entry. Of each group: e = ceil(log2(max(amax, 1e-4) / 448)), found exactly from amax's bits, stored as
/// e + 127; each value as e4m3(clamp(x * 2^-e)), to nearest even. A group with a NaN or infinity gets the scale byte
/// 255 and reads back as NaN throughout. The rotated values are rounded to bf16.
///
/// Of the three variants in use this is the serving engines' fused store: the floor is on amax, and x is not rounded
/// to bf16 first. (The others round x first with a floor of 1e-8, or put the floor on the scale; they differ on
/// values below 1e-4 and where the rounding of x crosses a power of two.)
/// \param[in]  values [entry_dim]
/// \param[out] row    row_bytes bytes
/// \param[out] scales scale_row_bytes bytes
FLASHMEMORY_API void quantise_entry(const float* values, std::byte* row, std::byte* scales) noexcept;

/// The values of an entry, exact: each is a bf16 number, or infinite where 2^128 is passed.
/// \param[out] values [entry_dim]
FLASHMEMORY_API void dequantise_entry(const std::byte* row, const std::byte* scales, float* values) noexcept;

/// Pages of entries in host memory. Entry number i is row i % entries_per_page of page i / entries_per_page.
/// Either all pages have the same distance, or a table says where each lies: the slots of a chunk store.
struct page_pool {
  std::byte* pages = nullptr;          ///< the first page
  std::int64_t page_stride = 0;        ///< bytes from a page to the next, >= page_bytes(entries_per_page)
  std::int64_t num_pages = 0;          ///< pages that may be named
  std::int32_t entries_per_page = 64;  ///< a power of two
  const std::byte* const* table = nullptr;  ///< [num_pages] instead of `pages`: each page lies
  std::int64_t table_offset = 0;  ///< this many bytes after its table entry; append_entries() refuses it
};

/// Quantises rows into their places.
/// \param[in] values    [n, entry_dim], f32 or bf16, unit last stride
/// \param[in] locations [n] entry numbers, distinct; -1 skips a row
/// \returns bad_shape, bad_dtype (f16), bad_argument (pool, or one with a table), null_data, out_of_range (fault:
///     actual = the location; nothing is written)
FLASHMEMORY_API status append_entries(const page_pool& pool, const_tensor<2> values,
                                      view<const std::int32_t, 1> locations, fault* error = nullptr) noexcept;

/// A list of entries per query row.
struct entry_source {
  page_pool pool;
  view<const std::int32_t, 2>
      entries;  ///< [rows, capacity] entry numbers; those outside the pool, -1 above all, are
                ///< ignored. Data null = no such source
  view<const std::int32_t, 1>
      counts;  ///< [rows] how many of a row's numbers count, clamped to [0, capacity]; data
               ///< null = all
};

/// Options of sparse_attend(). Every default means "off".
struct attend_options {
  float softmax_scale = 0;  ///< multiplies logits; 0 = 512^-0.5
  view<const float, 1>
      sink_logits;  ///< [heads] a logit without a value in each head's denominator, unscaled; finite or
                    ///< -inf
  view<float, 2>
      lse;  ///< [rows, heads] out: natural log of the softmax denominator, sink included; -inf if that is 0
  thread_hook threads = default_threads();
  fault* error = nullptr;  ///< if not null, details when the result is not ok
};

/// Attention of each query row over its sliding window and its selected entries together, under one softmax:
/// out_h = sum_e softmax(scale * q_h . e) e. Float accumulation; zero for a row without entries.
/// \param[in]  q   [rows, heads, entry_dim], any dtype, unit last stride; heads in [1, max_heads]
/// \param[out] out [rows, heads, entry_dim], any dtype, unit last stride; must not overlap q
/// \returns bad_shape, bad_dtype, bad_argument (pool), null_data; `out` is then untouched
FLASHMEMORY_API status sparse_attend(const entry_source& window, const entry_source& selected,
                                     const_tensor<3> q, tensor<3> out,
                                     const attend_options& options) noexcept;

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
