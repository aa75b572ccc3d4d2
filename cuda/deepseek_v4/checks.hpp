// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/deepseek_v4.hpp>

#include "cuda/core/error.hpp"
#include "cuda/deepseek_v4/params.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

inline bool aligned(const void* pointer) noexcept {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

inline status to_device(const page_pool& pool, device_pool& out, fault* error) noexcept {
  using detail::refuse;
  const std::int32_t n = pool.entries_per_page;
  if (n < 1 || n > 65536 || (n & (n - 1)) != 0) {
    return refuse(status::bad_argument, "entries_per_page", 64, n, error);
  }
  if (pool.num_pages < 0 || pool.num_pages > INT32_MAX / n) {
    return refuse(status::bad_argument, "num_pages", INT32_MAX / n, pool.num_pages, error);
  }
  if (pool.table == nullptr && pool.page_stride < page_bytes(n)) {
    return refuse(status::bad_argument, "page_stride", page_bytes(n), pool.page_stride, error);
  }
  const std::int64_t step = pool.table != nullptr ? pool.table_offset : pool.page_stride;
  if (step % 16 != 0) return refuse(status::bad_argument, "alignment of pages", 16, step, error);
  if (pool.num_pages > 0 && pool.table == nullptr) {
    if (pool.pages == nullptr) return refuse(status::null_data, "pages", -1, -1, error);
    if (!aligned(pool.pages)) return refuse(status::bad_argument, "alignment of pages", 16, -1, error);
  }
  out.pages = pool.pages;
  out.table = pool.table;
  out.step = step;
  out.entries = static_cast<std::uint32_t>(pool.num_pages * n);
  out.page_shift = 0;
  while ((1 << out.page_shift) < n) ++out.page_shift;
  return status::ok;
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
