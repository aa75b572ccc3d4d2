// SPDX-License-Identifier: MIT
#pragma once

#include "cuda/deepseek_v4/params.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

/// Where an entry's two parts lie; null for numbers outside the pool.
struct device_place {
  std::byte* row;
  std::byte* scales;
};

__device__ __forceinline__ device_place find(const device_pool& pool, std::int32_t entry) {
  if (static_cast<std::uint32_t>(entry) >= pool.entries) return {nullptr, nullptr};
  const std::int64_t page = entry >> pool.page_shift;
  const std::int64_t slot = entry & ((1 << pool.page_shift) - 1);
  std::byte* start = pool.table != nullptr ? const_cast<std::byte*>(pool.table[page]) + pool.step
                                           : pool.pages + page * pool.step;
  return {start + slot * row_bytes, start + (row_bytes << pool.page_shift) + slot * scale_row_bytes};
}

/// How many numbers of a row's list count: what the list says, and what that means.
__device__ __forceinline__ std::int32_t stated_count(const device_list& list, std::int64_t row) {
  return list.counts == nullptr ? list.capacity : __ldg(list.counts + row);
}
__device__ __forceinline__ std::int32_t clamped_count(const device_list& list, std::int32_t stated) {
  return stated < 0 ? 0 : stated < list.capacity ? stated : list.capacity;
}
__device__ __forceinline__ std::int32_t count_of(const device_list& list, std::int64_t row) {
  return clamped_count(list, stated_count(list, row));
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
