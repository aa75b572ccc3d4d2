// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <limits>

#include "src/core/convert.hpp"
#include "src/indexer/e2m1.hpp"

namespace flashmemory {
inline namespace v0 {

namespace {

constexpr std::int32_t block = 32;  // of an e8m0 scale

/// Largest magnitude; NaN if any value is.
float largest_magnitude(const float* values, std::int32_t count) noexcept {
  float largest = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(values[i]);
    if (std::isnan(magnitude)) return magnitude;
    largest = std::max(largest, magnitude);
  }
  return largest;
}

/// One f32 scale: amax / most. `code(value / scale)` is a byte.
template <class Code>
void quantise_bytes(const float* values, std::int32_t dim, float most, std::byte* out, const Code& code) {
  const float scale = largest_magnitude(values, dim) / most;
  const bool usable = scale > 0 && std::isfinite(scale);
  for (std::int32_t i = 0; i < dim; ++i) out[i] = usable ? std::byte(code(values[i] / scale)) : std::byte{0};
  std::memcpy(out + dim, &scale, sizeof scale);
}

template <class T>
void convert_values(const float* values, std::int32_t dim, std::byte* out) noexcept {
  for (std::int32_t i = 0; i < dim; ++i) {
    const T value = detail::convert<T>(values[i]);
    std::memcpy(out + 2 * i, &value, sizeof value);
  }
}

template <class T>
void load_values(const std::byte* key, std::int32_t dim, float* values) noexcept {
  for (std::int32_t i = 0; i < dim; ++i) {
    T value;
    std::memcpy(&value, key + 2 * i, sizeof value);
    values[i] = detail::to_float(value);
  }
}

void quantise_block(const float* values, std::byte* codes, std::byte* scale) noexcept {
  const float largest = largest_magnitude(values, block);
  const std::uint8_t exponent = detail::mx_exponent(largest);
  *scale = std::byte{exponent};
  const bool usable = exponent != 0xff;
  const float unit = usable ? detail::mx_scale(exponent) : 1.0f;
  for (std::int32_t i = 0; i < block; i += 2) {
    const auto code = [&](float value) { return usable ? detail::to_e2m1(value / unit) : std::uint8_t{0}; };
    codes[i / 2] = std::byte(code(values[i]) | code(values[i + 1]) << 4);
  }
}

}  // namespace

void quantise_index_key(const float* values, const index_key_geometry& keys, std::byte* out) noexcept {
  switch (keys.type) {
    case index_key_type::e4m3:
      return quantise_bytes(values, keys.dim, 448.0f, out, [](float x) { return to_e4m3(x); });
    case index_key_type::int8:
      return quantise_bytes(values, keys.dim, 127.0f, out, [](float x) {
        return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::nearbyint(x)));
      });
    case index_key_type::bf16:
      return convert_values<bfloat16>(values, keys.dim, out);
    case index_key_type::f16:
      return convert_values<float16>(values, keys.dim, out);
    case index_key_type::mxfp4:
      for (std::int32_t b = 0; b < keys.dim / block; ++b)
        quantise_block(values + b * block, out + b * (block / 2), out + keys.value_bytes() + b);
      return;
  }
}

void dequantise_index_key(const std::byte* key, const index_key_geometry& keys, float* values) noexcept {
  switch (keys.type) {
    case index_key_type::e4m3:
    case index_key_type::int8: {
      float scale;
      std::memcpy(&scale, key + keys.dim, sizeof scale);
      bool nan = !std::isfinite(scale);
      for (std::int32_t i = 0; i < keys.dim; ++i) {
        const auto bits = static_cast<std::uint8_t>(key[i]);
        values[i] =
            scale * (keys.type == index_key_type::e4m3 ? from_e4m3(bits)
                                                       : static_cast<float>(static_cast<std::int8_t>(bits)));
        nan = nan || std::isnan(values[i]);
      }
      if (nan) std::fill_n(values, keys.dim, std::numeric_limits<float>::quiet_NaN());
      return;
    }
    case index_key_type::bf16:
      return load_values<bfloat16>(key, keys.dim, values);
    case index_key_type::f16:
      return load_values<float16>(key, keys.dim, values);
    case index_key_type::mxfp4:
      for (std::int32_t i = 0; i < keys.dim; ++i) {
        const auto pair = static_cast<std::uint8_t>(key[i / 2]);
        const float unit = detail::mx_scale(static_cast<std::uint8_t>(key[keys.value_bytes() + i / block]));
        values[i] = unit * detail::from_e2m1(i % 2 == 0 ? pair & 0xf : pair >> 4);
      }
      return;
  }
}

}  // namespace v0
}  // namespace flashmemory
