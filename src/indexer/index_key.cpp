// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <limits>

#include "src/core/convert.hpp"

namespace flashmemory {
inline namespace v0 {

std::uint8_t to_e4m3(float value) noexcept {
  const std::uint32_t bits = detail::bits_of(value);
  const std::uint32_t sign = bits >> 24 & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // 448 and beyond
  if (magnitude < 0x3c800000u) {  // below 2^-6, subnormal: one ulp of 2^14 is 2^-9, so the adder rounds
    const std::uint32_t sum = detail::bits_of(detail::float_of(magnitude) + 0x1p14f);
    return static_cast<std::uint8_t>(sign | (sum - 0x46800000u));
  }
  const std::uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  return static_cast<std::uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

float from_e4m3(std::uint8_t bits) noexcept {
  const std::uint32_t magnitude = bits & 0x7fu;
  float value;
  if (magnitude == 0x7f) {
    value = std::numeric_limits<float>::quiet_NaN();
  } else if (magnitude < 8) {
    value = static_cast<float>(magnitude) * 0x1p-9f;
  } else {
    value = detail::float_of((magnitude + (120u << 3)) << 20);
  }
  return bits & 0x80u ? -value : value;
}

float round_to_bf16(float value) noexcept { return detail::to_float(detail::convert<bfloat16>(value)); }

void hadamard_128(float* values) noexcept {
  for (int stride = 1; stride < index_key_dim; stride *= 2) {
    for (int base = 0; base < index_key_dim; base += 2 * stride) {
      for (int i = base; i < base + stride; ++i) {
        const float u = values[i];
        const float v = values[i + stride];
        values[i] = u + v;
        values[i + stride] = u - v;
      }
    }
  }
  const float root = std::sqrt(static_cast<float>(index_key_dim));
  for (int i = 0; i < index_key_dim; ++i) values[i] /= root;
}

void quantise_key(const float* key, std::byte* out, float floor) noexcept {
  float largest = floor;
  for (int i = 0; i < index_key_dim; ++i) largest = std::max(largest, std::fabs(key[i]));  // NaN loses
  const float scale = largest / 448.0f;
  for (int i = 0; i < index_key_dim; ++i) out[i] = static_cast<std::byte>(to_e4m3(key[i] / scale));
  std::memcpy(out + index_key_dim, &scale, sizeof scale);
}

void repack_keys(const std::byte* from, std::byte* to, std::int64_t count, std::int64_t page_keys,
                 std::int32_t key_bytes, bool to_planar, std::int32_t bytes_of_scale) noexcept {
  const auto scale_bytes = static_cast<std::size_t>(bytes_of_scale);
  const std::size_t row = static_cast<std::size_t>(key_bytes);
  const std::size_t values = row - scale_bytes;
  const std::size_t scales = static_cast<std::size_t>(page_keys) * values;
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    if (to_planar) {
      std::memcpy(to + i * values, from + i * row, values);
      std::memcpy(to + scales + i * scale_bytes, from + i * row + values, scale_bytes);
    } else {
      std::memcpy(to + i * row, from + i * values, values);
      std::memcpy(to + i * row + values, from + scales + i * scale_bytes, scale_bytes);
    }
  }
}

}  // namespace v0
}  // namespace flashmemory
