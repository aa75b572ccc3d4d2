// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/core/append_target.hpp"
#include "cuda/core/key_page.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

__device__ __forceinline__ std::byte* key_values(std::byte* base, std::int32_t key, const key_page& page) {
  return base + std::int64_t{key} * (page.planar ? page.value_bytes : page.key_bytes());
}
__device__ __forceinline__ std::byte* key_scales(std::byte* base, std::int32_t key, const key_page& page) {
  return page.planar
             ? base + std::int64_t{page.page_keys} * page.value_bytes + std::int64_t{key} * page.scale_bytes
             : key_values(base, key, page) + page.value_bytes;
}

/// Little-endian, byte by byte: an interleaved key may begin anywhere.
__device__ __forceinline__ void store_scale(std::byte* base, std::int32_t key, const key_page& page,
                                            std::uint32_t bits) {
  std::byte* const out = key_scales(base, key, page);
  for (int i = 0; i < 4; ++i) out[i] = static_cast<std::byte>(bits >> 8 * i & 0xff);
}

/// Keys that are not there yet read as zero, whatever the page held before: the block that writes a page's first key
/// clears those that this step does not write, which are the ones after the targets of its row that name the page.
template <int kThreads>
__device__ __forceinline__ void clear_new_page(const append_target* targets, int target, int per_row,
                                               const key_page& page) {
  const append_target mine = targets[target];
  if (mine.entry != 0) return;
  int written = 1;
  for (int i = target + 1; i < (target / per_row + 1) * per_row; ++i)
    written += targets[i].chunk == mine.chunk;
  const int rest = page.page_keys - written;
  const auto clear = [](std::byte* from, int bytes) {
    for (int i = static_cast<int>(threadIdx.x); i < bytes; i += kThreads) from[i] = std::byte{0};
  };
  if (page.planar) {
    clear(key_values(mine.chunk, written, page), rest * page.value_bytes);
    clear(key_scales(mine.chunk, written, page), rest * page.scale_bytes);
  } else {
    clear(key_values(mine.chunk, written, page), rest * page.key_bytes());
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
