// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <flashmemory/store/geometry.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Whether a key of `keys.bytes()` bytes - its values, then its scales - holds numbers alone: no NaN or Inf in what its
/// type can have them in.
bool finite_index_key(const index_key_geometry& keys, const std::byte* key) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
