// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Rows [first_row, first_row + count) that become entries [first_entry, ...) of one layer's piece of a chunk.
struct row_target {
  std::byte* piece;
  std::int64_t first_row;
  std::int32_t first_entry, count;
};

/// What one launch takes, so that the table fits into a kernel's 4 KB of parameters.
inline constexpr int max_row_targets = 128;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
