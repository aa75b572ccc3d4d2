// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace flashmemory {
inline namespace v0 {

/// Bytes from one page, KV head and entry of an engine's own pool to the next.
struct page_strides {
  std::int64_t page = 0, head = 0, entry = 0;
};

/// Strides of pages [entries, heads, bytes of an entry].
constexpr page_strides nhd_strides(std::int32_t entries_per_page, std::int32_t kv_heads,
                                   std::int64_t entry_bytes) noexcept {
  return {entries_per_page * kv_heads * entry_bytes, entry_bytes, kv_heads * entry_bytes};
}

/// Strides of pages [heads, entries, bytes of an entry].
constexpr page_strides hnd_strides(std::int32_t entries_per_page, std::int32_t kv_heads,
                                   std::int64_t entry_bytes) noexcept {
  return {entries_per_page * kv_heads * entry_bytes, entries_per_page * entry_bytes, entry_bytes};
}

}  // namespace v0
}  // namespace flashmemory
