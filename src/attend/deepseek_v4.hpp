// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/attend/deepseek_v4.hpp>

namespace flashmemory {
inline namespace v0 {
namespace deepseek_v4 {

/// Where an entry's two parts lie.
struct place {
  std::byte* row;
  std::byte* scales;
};

inline place find(const page_pool& pool, std::int64_t entry) noexcept {
  const std::int64_t number = entry / pool.entries_per_page;
  // What comes from a table is only read: append_entries() refuses it.
  std::byte* page = pool.table != nullptr ? const_cast<std::byte*>(pool.table[number]) + pool.table_offset
                                          : pool.pages + number * pool.page_stride;
  const auto slot = static_cast<std::int32_t>(entry % pool.entries_per_page);
  return {page + row_offset(slot), page + scale_offset(pool.entries_per_page, slot)};
}

inline status refuse(status code, const char* what, std::int64_t expected, std::int64_t actual,
                     fault* error) noexcept {
  if (error != nullptr) {
    *error = fault{};
    error->code = code;
    error->what = what;
    error->expected = expected;
    error->actual = actual;
  }
  return code;
}

status check_pool(const page_pool& pool, fault* error) noexcept;

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
