// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Order of selection as an unsigned number: larger is better. 0 is left for "no element", 1 is NaN, and 0
/// and -0 are the same.
__device__ __forceinline__ std::uint32_t ordered_key(float score) {
  const std::uint32_t bits = __float_as_uint(score + 0.0f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 1;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The score of an ordered key other than 0.
__device__ __forceinline__ float ordered_score(std::uint32_t key) {
  if (key <= 1) return __uint_as_float(0x7fc00000u);
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
