// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/detail/convert.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Magnitudes of the eight e2m1 codes, twice as large: whole numbers.
inline constexpr std::int8_t e2m1_doubled[8] = {0, 1, 2, 3, 4, 6, 8, 12};

inline float from_e2m1(int code) noexcept {
  const float magnitude = 0.5f * static_cast<float>(e2m1_doubled[code & 7]);
  return (code & 8) != 0 ? -magnitude : magnitude;
}

/// To nearest, of two the even code; saturates at 6. Not for NaN.
inline std::uint8_t to_e2m1(float value) noexcept {
  const std::uint8_t sign = value < 0 ? 8 : 0;
  const float x = value < 0 ? -value : value;
  // Borders between neighbours; a tie goes to the even one of the two.
  const int code = x <= 0.25f   ? 0
                   : x < 0.75f  ? 1
                   : x <= 1.25f ? 2
                   : x < 1.75f  ? 3
                   : x <= 2.5f  ? 4
                   : x < 3.5f   ? 5
                   : x <= 5.0f  ? 6
                                : 7;
  return static_cast<std::uint8_t>(sign | code);
}

/// The value of an e8m0 byte.
inline float mx_scale(std::uint8_t exponent) noexcept {
  if (exponent == 0xff) return float_of(0x7fc00000u);
  return float_of(exponent == 0 ? 0x00400000u : std::uint32_t{exponent} << 23);
}

/// The e8m0 byte for a block whose largest magnitude is `largest`: its exponent less 2, which leaves it below 8 units, and
/// one more where it would be beyond 7, since that loses less than saturating at 6 does. 0xff for NaN and Inf.
inline std::uint8_t mx_exponent(float largest) noexcept {
  const std::uint32_t bits = bits_of(largest) & 0x7fffffffu;
  if (bits >= 0x7f800000u) return 0xff;
  const std::uint32_t up = (bits & 0x7fffffu) > 0x600000u ? 1 : 0;
  const std::uint32_t exponent = (bits >> 23) + up;
  return static_cast<std::uint8_t>(exponent > 2 ? exponent - 2 : 0);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
