// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Whether a native key's e4m3 bytes and its scale are numbers.
inline bool is_finite_key(const std::byte* key, std::int32_t key_bytes) noexcept {
  float scale;
  std::memcpy(&scale, key + key_bytes - 4, sizeof scale);
  for (std::int32_t i = 0; i < key_bytes - 4; ++i)
    if ((key[i] & std::byte{0x7f}) == std::byte{0x7f}) return false;
  return std::isfinite(scale);
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
