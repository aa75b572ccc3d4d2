// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <flashmemory/config.hpp>

namespace flashmemory {
inline namespace v0 {

/// Where set-up calls take memory from. Step calls never allocate.
struct memory_resource {
  void* context = nullptr;

  /// At least `bytes` bytes aligned to `alignment` (a power of two), or null when there is none.
  void* (*allocate)(void* context, std::size_t bytes, std::size_t alignment) = nullptr;

  /// Takes back what `allocate` returned, with the same size and alignment.
  void (*deallocate)(void* context, void* pointer, std::size_t bytes, std::size_t alignment) = nullptr;
};

/// Aligned operator new. Large blocks are touched lazily, so untouched memory costs nothing.
FLASHMEMORY_API memory_resource default_memory() noexcept;

}  // namespace v0
}  // namespace flashmemory
