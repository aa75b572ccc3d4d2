// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>

namespace flashmemory {
inline namespace v0 {

/// The KV format of DeepSeek-V4, and attention over it (attend/deepseek_v4.hpp). One entry is 512 values that serve as key and as value: 448
/// without position, in e4m3 with one power-of-two scale per 64, and 64 rotated ones in bf16.
namespace deepseek_v4 {

inline constexpr std::int32_t entry_dim = 512;       ///< values of an entry
inline constexpr std::int32_t nope_dim = 448;        ///< of which the first are e4m3
inline constexpr std::int32_t rope_dim = 64;         ///< and the last bf16, already rotated
inline constexpr std::int32_t group_dim = 64;        ///< values that share a scale
inline constexpr std::int32_t scale_groups = 7;      ///< of an entry
inline constexpr std::int64_t row_bytes = 576;       ///< 448 e4m3, then 64 bf16
inline constexpr std::int64_t scale_row_bytes = 8;   ///< 7 ue8m0 (2^(byte - 127), 255 = NaN), then a zero
inline constexpr std::int64_t entry_bytes = 584;     ///< what an entry takes in all
inline constexpr std::int32_t window_entries = 256;  ///< of a page of the sliding-window pool
inline constexpr std::int32_t csa_entries = 64;      ///< of a page of entries compressed from 4 tokens
inline constexpr std::int32_t hca_entries = 2;       ///< of a page of entries compressed from 128 tokens
inline constexpr std::int32_t lightning_dim =
    128;  ///< values of an entry's lightning key, which the layer's own
          ///< indexer (level 2) scores
inline constexpr std::int64_t lightning_key_bytes = 132;  ///< its e4m3 bytes and its f32 scale
inline constexpr float lightning_key_floor =
    1e-4f;  ///< smallest amax when it is quantised, see quantise_key()

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

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
