// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <flashmemory/indexer/pooled_keys.hpp>
#include <limits>
#include <vector>

#include "tests/reference/indexer.hpp"

/// Index keys of any type and the pooled-keys indexer in double precision, one loop per line of the formula.
namespace flashmemory::reference {

inline double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

inline double e2m1_value(int code) {
  const int exponent = code >> 1 & 3, mantissa = code & 1;
  const double magnitude = exponent == 0 ? 0.5 * mantissa : std::ldexp(2 + mantissa, exponent - 2);
  return code & 8 ? -magnitude : magnitude;
}

/// The values of one stored key: its values, then its scales.
inline std::vector<double> index_key_values(const index_key_geometry& g, const std::byte* key) {
  std::vector<double> out(std::size_t(g.dim));
  float scale = 1;
  if (g.type == index_key_type::e4m3 || g.type == index_key_type::int8) std::memcpy(&scale, key + g.dim, 4);
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t pair = 0;
    const auto byte = [&](std::size_t at) { return std::uint8_t(key[at]); };
    switch (g.type) {
      case index_key_type::e4m3:
        out[i] = double(scale) * e4m3_value(byte(i));
        break;
      case index_key_type::int8:
        out[i] = double(scale) * std::int8_t(byte(i));
        break;
      case index_key_type::bf16: {
        std::memcpy(&pair, key + 2 * i, 2);
        const std::uint32_t bits = std::uint32_t{pair} << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        out[i] = double(value);
        break;
      }
      case index_key_type::f16:
        std::memcpy(&pair, key + 2 * i, 2);
        out[i] = half_value(pair);
        break;
      case index_key_type::mxfp4:
        out[i] = e2m1_value(byte(i / 2) >> (i % 2 == 0 ? 0 : 4) & 15) *
                 std::ldexp(1.0, byte(std::size_t(g.value_bytes()) + i / 32) - 127);
        break;
    }
  }
  return out;
}

/// What an index key of one lane is before it is quantised, of rows [tokens_per_key, kv_heads * key_dim].
inline std::vector<double> pooled_key(const pooled_keys_config& c, const pooled_keys_lane& lane,
                                      const float* rows) {
  std::vector<double> mean(std::size_t(c.key_dim));
  for (std::int32_t t = 0; t < c.tokens_per_key; ++t)
    for (std::int32_t i = 0; i < c.key_dim; ++i)
      mean[std::size_t(i)] +=
          double(rows[(t * c.kv_heads + lane.kv_head) * c.key_dim + i]) / c.tokens_per_key;
  return lane.key_projection.empty() ? mean : multiply(lane.key_projection, mean);
}

/// Needs [chunks] of `queries`, [lane of the config] -> [tokens, query_heads * key_dim], against keys [lane][key].
inline std::vector<double> pooled_needs(const pooled_keys_config& c, const std::vector<const float*>& queries,
                                        const std::vector<std::vector<std::vector<double>>>& keys,
                                        std::size_t chunks, std::size_t keys_per_chunk) {
  std::vector<double> squares(chunks);
  const double scale = c.softmax_scale > 0 ? double(c.softmax_scale) : 1 / std::sqrt(double(c.key_dim));
  std::size_t begin = std::size_t(c.uncounted_sink_chunks),
              end = chunks - std::size_t(c.uncounted_recent_chunks);
  if (std::int64_t(begin) >= std::int64_t(chunks) - c.uncounted_recent_chunks) begin = 0, end = chunks;
  const std::int32_t group = c.query_heads / c.kv_heads;
  for (std::int32_t t = 0; t < c.query_tokens; ++t) {
    std::vector<double> best(chunks);
    for (std::size_t l = 0; l < c.lanes.size(); ++l) {
      const pooled_keys_lane& lane = c.lanes[l];
      std::vector<std::int32_t> heads = lane.query_heads;
      for (std::int32_t h = 0; lane.query_heads.empty() && h < group; ++h)
        heads.push_back(lane.kv_head * group + h);
      for (const std::int32_t head : heads) {
        const float* const at = queries[l] + (t * c.query_heads + head) * c.key_dim;
        std::vector<double> q(at, at + c.key_dim);
        if (!lane.key_projection.empty())
          q = multiply(lane.query_projection.empty() ? lane.key_projection : lane.query_projection, q);
        std::vector<double> logits;
        double most = -1e300;
        for (std::size_t k = 0; k < chunks * keys_per_chunk; ++k) {
          double dot = 0;
          for (std::size_t i = 0; i < q.size(); ++i) dot += q[i] * keys[l][k][i];
          logits.push_back(dot * scale);
          most = std::max(most, logits.back());
        }
        std::vector<double> part(chunks);
        double total = 0;
        for (std::size_t n = 0; n < chunks; ++n) {
          for (std::size_t k = n * keys_per_chunk; k < (n + 1) * keys_per_chunk; ++k)
            part[n] += std::exp(logits[k] - most);
          if (n >= begin && n < end) total += part[n];
        }
        for (std::size_t n = 0; n < chunks; ++n)
          best[n] = std::max(best[n], part[n] / (total + (n >= begin && n < end ? 0 : part[n])));
      }
    }
    for (std::size_t n = 0; n < chunks; ++n) squares[n] += best[n] * best[n];
  }
  for (double& s : squares) s = std::sqrt(s / c.query_tokens);
  return squares;
}

}  // namespace flashmemory::reference
