// SPDX-License-Identifier: MIT
#include "src/core/index_key.hpp"

#include <cmath>
#include <cstring>

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

/// No element of two bytes has all the exponent's bits.
bool finite_pairs(const std::byte* values, std::int32_t count, std::uint16_t exponent) noexcept {
  for (std::int32_t i = 0; i < count; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, values + 2 * i, sizeof bits);
    if ((bits & exponent) == exponent) return false;
  }
  return true;
}

bool finite_scale(const std::byte* scale) noexcept {
  float value;
  std::memcpy(&value, scale, sizeof value);
  return std::isfinite(value);
}

}  // namespace

bool finite_index_key(const index_key_geometry& keys, const std::byte* key) noexcept {
  const std::byte* const scales = key + keys.value_bytes();
  switch (keys.type) {
    case index_key_type::e4m3:
      for (std::int32_t i = 0; i < keys.dim; ++i)
        if ((key[i] & std::byte{0x7f}) == std::byte{0x7f}) return false;
      return finite_scale(scales);
    case index_key_type::bf16:
      return finite_pairs(key, keys.dim, 0x7f80);
    case index_key_type::f16:
      return finite_pairs(key, keys.dim, 0x7c00);
    case index_key_type::int8:
      return finite_scale(scales);
    case index_key_type::mxfp4:
      for (std::int32_t i = 0; i < keys.scale_bytes(); ++i)
        if (scales[i] == std::byte{0xff}) return false;
      return true;
  }
  return false;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
