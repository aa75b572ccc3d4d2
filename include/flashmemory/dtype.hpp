// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>

namespace flashmemory {
inline namespace v0 {

/// Element types of K, V, queries and hidden states.
enum class dtype : std::int32_t { f32, bf16, f16 };

/// Bytes of one element.
constexpr std::size_t size_of(dtype type) noexcept { return type == dtype::f32 ? 4 : 2; }

/// "f32", "bf16" or "f16"; "?" for a value outside the enumeration.
constexpr const char* to_string(dtype type) noexcept {
  return type == dtype::f32 ? "f32" : type == dtype::bf16 ? "bf16" : type == dtype::f16 ? "f16" : "?";
}

/// Storage of one bfloat16 (the upper half of an IEEE binary32). Arithmetic happens in float.
struct bfloat16 {
  std::uint16_t bits = 0;
};

/// Storage of one IEEE binary16. Arithmetic happens in float.
struct float16 {
  std::uint16_t bits = 0;
};

namespace detail {
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr dtype value = dtype::f32;
};
template <>
struct dtype_of<bfloat16> {
  static constexpr dtype value = dtype::bf16;
};
template <>
struct dtype_of<float16> {
  static constexpr dtype value = dtype::f16;
};
}  // namespace detail

}  // namespace v0
}  // namespace flashmemory
