// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/store/geometry.hpp>

namespace flashmemory {
inline namespace v0 {

/// Elements of an index key and of a query head.
inline constexpr std::int32_t index_key_dim = 128;

/// Rounds to the nearest e4m3fn value, ties to even; saturates at +-448; NaN becomes 0x7f.
FLASHMEMORY_API std::uint8_t to_e4m3(float value) noexcept;

/// The value of an e4m3fn byte; 0x7f and 0xff are NaN.
FLASHMEMORY_API float from_e4m3(std::uint8_t bits) noexcept;

/// Rounds to the nearest bfloat16, ties to even, and back.
FLASHMEMORY_API float round_to_bf16(float value) noexcept;

/// In-place Walsh-Hadamard transform in natural order, divided by sqrt(128).
FLASHMEMORY_API void hadamard_128(float* values) noexcept;

/// Quantises one key: scale = max(amax(|key|), floor) / 448 in f32 (no power of two), bytes = e4m3(key /
/// scale).
/// \param[in]  key  [index_key_dim]
/// \param[out] out  [132]: 128 bytes, then the scale, little-endian
/// \param      floor smallest amax; 1e-4 in the reference engine
FLASHMEMORY_API void quantise_key(const float* key, std::byte* out, float floor) noexcept;

/// Quantises an index key of any type: values, then scales. e4m3 and int8 have scale = amax / 448 and amax / 127, mxfp4 the
/// power of two that keeps a block's largest value within 7 of its units, of which 6 is the last; values are rounded to
/// nearest, ties to even. All zero where amax / 448 or amax / 127 is. What is NaN, or beyond the type, becomes a key that is
/// not finite, which stores refuse.
/// \param[in]  values  [keys.dim]
/// \param[out] out     [keys.bytes()]; of two mxfp4 values of a byte the first has the lower half
FLASHMEMORY_API void quantise_index_key(const float* values, const index_key_geometry& keys,
                                        std::byte* out) noexcept;

/// The values of such a key; all NaN where its scale is or, in e4m3, where any value is.
/// \param[out] values  [keys.dim]
FLASHMEMORY_API void dequantise_index_key(const std::byte* key, const index_key_geometry& keys,
                                          float* values) noexcept;

/// Converts `count` keys of `key_bytes` bytes, of which the last `scale_bytes` are the scale, from rows (interleaved) to the layout of a page, or back.
/// \param[in]  from   [count, key_bytes] rows if `to_planar`, else a planar page of `page_keys` keys
/// \param      page_keys keys that a full page holds, >= count; decides where the scales start
FLASHMEMORY_API void repack_keys(const std::byte* from, std::byte* to, std::int64_t count,
                                 std::int64_t page_keys, std::int32_t key_bytes, bool to_planar,
                                 std::int32_t scale_bytes = 4) noexcept;

}  // namespace v0
}  // namespace flashmemory
