// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "tests/reference/attention.hpp"

namespace flashmemory_test::reference {

/// The value of an e4m3fn code: sign, 4 bits of exponent with bias 7, 3 of mantissa; 0x7f and 0xff are NaN.
inline double e4m3_value(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return code & 0x80 ? -magnitude : magnitude;
}

/// The nearest of all codes, ties to the even one; the sign is kept, zero's too.
inline std::uint8_t e4m3_code(double value) {
  const double magnitude = std::min(std::fabs(value), 448.0);
  int best = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const double off = std::fabs(e4m3_value(code) - magnitude),
                 least = std::fabs(e4m3_value(best) - magnitude);
    if (off < least || (off == least && code % 2 == 0)) best = code;
  }
  return static_cast<std::uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

/// One entry in the 584-byte form.
struct v4_entry {
  std::array<std::uint8_t, 576> row{};
  std::array<std::uint8_t, 8> scales{};
};

inline std::uint16_t bf16_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline double bf16_value(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return double(value);
}

/// Of each 64 of the first 448 values: e = ceil(log2(max(amax, 1e-4) / 448)), codes of x / 2^e; the rest as bf16.
inline v4_entry v4_quantise(const std::vector<float>& values) {
  v4_entry entry;
  for (std::size_t g = 0; g < 7; ++g) {
    double amax = double(1e-4f);
    bool finite = true;
    for (std::size_t i = 64 * g; i < 64 * (g + 1); ++i) {
      finite = finite && std::isfinite(values[i]);
      amax = std::fmax(amax, std::fabs(double(values[i])));
    }
    int e = -126;
    while (std::ldexp(448.0, e) < amax) ++e;
    entry.scales[g] = static_cast<std::uint8_t>(finite ? e + 127 : 255);
    for (std::size_t i = 64 * g; i < 64 * (g + 1); ++i) {
      entry.row[i] = finite ? e4m3_code(std::ldexp(double(values[i]), -e)) : 0x7f;
    }
  }
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint16_t bits = bf16_bits(values[448 + i]);
    std::memcpy(&entry.row[448 + 2 * i], &bits, 2);
  }
  return entry;
}

inline std::vector<double> v4_dequantise(const v4_entry& entry) {
  std::vector<double> values(512);
  for (std::size_t i = 0; i < 448; ++i) {
    const int byte = entry.scales[i / 64];
    values[i] = byte == 255 ? std::numeric_limits<double>::quiet_NaN()
                            : std::ldexp(e4m3_value(entry.row[i]), byte - 127);
  }
  for (std::size_t i = 0; i < 64; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, &entry.row[448 + 2 * i], 2);
    values[448 + i] = bf16_value(bits);
  }
  return values;
}

/// One head of one row: every entry is its own key and value.
inline attention_result v4_attend(const std::vector<double>& query,
                                  const std::vector<std::vector<double>>& values, double scale,
                                  std::optional<double> sink_logit) {
  std::vector<entry> entries;
  for (const std::vector<double>& v : values) entries.push_back({v, v});
  return attention(query, entries, 512, scale, 0, sink_logit);
}

}  // namespace flashmemory_test::reference
