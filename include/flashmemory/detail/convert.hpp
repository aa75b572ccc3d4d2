// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <flashmemory/dtype.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

inline std::uint32_t bits_of(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) noexcept {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) noexcept { return value; }

inline float to_float(bfloat16 value) noexcept { return float_of(std::uint32_t{value.bits} << 16); }

inline float to_float(float16 value) noexcept {
  const std::uint32_t sign = std::uint32_t{value.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifting the exponent and scaling by 2^112 is exact for normal and subnormal halves alike.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

inline void from_float(float value, float& out) noexcept { out = value; }

/// Round to nearest even; NaN stays NaN.
inline void from_float(float value, bfloat16& out) noexcept {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out.bits = static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return;
  }
  out.bits = static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Round to nearest even; overflow becomes infinity, NaN stays NaN.
inline void from_float(float value, float16& out) noexcept {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out.bits = static_cast<std::uint16_t>(sign | 0x7e00u);
  } else if (magnitude >= 0x477ff000u) {  // rounds to 2^16 or beyond
    out.bits = static_cast<std::uint16_t>(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // subnormal half: let the float adder round at 2^-24
    const float rounded = float_of(magnitude) + 0.5f;
    out.bits = static_cast<std::uint16_t>(sign | (bits_of(rounded) - 0x3f000000u));
  } else {
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    out.bits = static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
  }
}

template <class T>
T convert(float value) noexcept {
  T out;
  from_float(value, out);
  return out;
}

/// Reads element `index` of an untyped buffer.
inline float load_float(const void* data, dtype type, std::int64_t index) noexcept {
  switch (type) {
    case dtype::f32:
      return static_cast<const float*>(data)[index];
    case dtype::bf16:
      return to_float(static_cast<const bfloat16*>(data)[index]);
    case dtype::f16:
      return to_float(static_cast<const float16*>(data)[index]);
  }
  return 0;
}

/// Writes element `index` of an untyped buffer.
inline void store_float(void* data, dtype type, std::int64_t index, float value) noexcept {
  switch (type) {
    case dtype::f32:
      static_cast<float*>(data)[index] = value;
      return;
    case dtype::bf16:
      from_float(value, static_cast<bfloat16*>(data)[index]);
      return;
    case dtype::f16:
      from_float(value, static_cast<float16*>(data)[index]);
      return;
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
