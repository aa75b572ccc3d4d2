// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <flashmemory/detail/convert.hpp>
#include <flashmemory/dtype.hpp>
#include <flashmemory/store/geometry.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Every number of a made-up model, from where it stands alone, so that any of them can be made again.
class planted_model {
 public:
  static constexpr std::int32_t hidden_width = 8;

  planted_model(const kv_geometry& geometry, std::int32_t query_heads, std::uint64_t seed) noexcept
      : g_(geometry), query_heads_(query_heads), seed_(seed) {}

  std::int32_t query_heads() const noexcept { return query_heads_; }

  float hidden(std::int32_t layer, std::int64_t token, std::int64_t i) const noexcept {
    return number(bits(1, layer, token, 0), i);
  }

  /// Which entry of a chunk holds its needle.
  std::int64_t needle_of(std::int64_t chunk) const noexcept {
    return chunk * g_.entries_per_chunk +
           static_cast<std::int64_t>(bits(2, 0, chunk, 0) % static_cast<std::uint64_t>(g_.entries_per_chunk));
  }

  /// K and V as the store keeps them. A needle's are rows of +-1 that only its chunk, layer and head have.
  void key(std::int32_t layer, std::int64_t entry, std::int32_t head, float* out) const noexcept {
    const std::int64_t chunk = entry / g_.entries_per_chunk;
    const bool needle = needle_of(chunk) == entry;
    const std::uint64_t row = needle ? bits(3, layer, chunk, head) : bits(4, layer, entry, head);
    for (std::int32_t i = 0; i < g_.key_dim; ++i)
      out[i] = needle ? sign(row, i) : stored(0.25f * number(row, i));
  }
  void value(std::int32_t layer, std::int64_t entry, std::int32_t head, float* out) const noexcept {
    const std::int64_t chunk = entry / g_.entries_per_chunk;
    const bool needle = needle_of(chunk) == entry;
    const std::uint64_t row = needle ? bits(5, layer, chunk, head) : bits(6, layer, entry, head);
    for (std::int32_t i = 0; i < g_.value_dim; ++i) out[i] = needle ? sign(row, i) : stored(number(row, i));
  }

  /// A query that is 20 logits above for the needle of a chunk.
  void query_for(std::int32_t layer, std::int64_t chunk, std::int32_t query_head, float* out) const noexcept {
    const std::uint64_t row = bits(3, layer, chunk, kv_head(query_head));
    const float size = 20.0f / std::sqrt(static_cast<float>(g_.key_dim));
    for (std::int32_t i = 0; i < g_.key_dim; ++i) out[i] = size * sign(row, i);
  }
  /// How much of an output is the needle's value: 1 if it is nothing else.
  double share_of(std::int32_t layer, std::int64_t chunk, std::int32_t query_head,
                  const float* output) const noexcept {
    const std::uint64_t row = bits(5, layer, chunk, kv_head(query_head));
    double sum = 0;
    for (std::int32_t i = 0; i < g_.value_dim; ++i) sum += double{output[i]} * sign(row, i);
    return sum / g_.value_dim;
  }
  /// A query that looks at everything a little.
  void query(std::int32_t layer, std::int64_t token, std::int32_t query_head, float* out) const noexcept {
    const std::uint64_t row = bits(7, layer, token, query_head);
    for (std::int32_t i = 0; i < g_.key_dim; ++i) out[i] = 2 * number(row, i);
  }
  float sink(std::int32_t query_head) const noexcept { return number(bits(8, 0, 0, query_head), 0); }

  std::int32_t kv_head(std::int32_t query_head) const noexcept {
    return query_head / (query_heads_ / g_.kv_heads);
  }

  /// 64 random bits of a place.
  std::uint64_t bits(std::uint64_t kind, std::int64_t layer, std::int64_t at,
                     std::int64_t of) const noexcept {
    return mix(seed_ ^ kind << 56 ^
               mix(static_cast<std::uint64_t>(at) << 20 ^ static_cast<std::uint64_t>(layer) << 10 ^
                   static_cast<std::uint64_t>(of)));
  }

 private:
  static std::uint64_t mix(std::uint64_t x) noexcept {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  /// The i-th number in [-1, 1) of a row.
  static float number(std::uint64_t row, std::int64_t i) noexcept {
    std::uint64_t x = row + static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 32)) * 0xbf58476d1ce4e5b9u;
    return static_cast<float>(static_cast<std::int32_t>(x >> 40) - (1 << 23)) * 0x1p-23f;
  }
  static float sign(std::uint64_t row, std::int64_t i) noexcept { return number(row, i) < 0 ? -1.0f : 1.0f; }
  /// As the store rounds it.
  float stored(float x) const noexcept {
    switch (g_.type) {
      case dtype::bf16:
        return to_float(convert<bfloat16>(x));
      case dtype::f16:
        return to_float(convert<float16>(x));
      default:
        return x;
    }
  }

  kv_geometry g_;
  std::int32_t query_heads_;
  std::uint64_t seed_;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
