// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <flashmemory/memory.hpp>
#include <map>
#include <vector>

namespace replay {

/// Device memory for one part of the engine, which then can say how much it took.
class counted_device_memory {
 public:
  counted_device_memory() = default;
  counted_device_memory(const counted_device_memory&) = delete;
  counted_device_memory& operator=(const counted_device_memory&) = delete;
  flashmemory::memory_resource resource() noexcept;
  std::size_t in_use() const noexcept { return in_use_; }

 private:
  std::size_t in_use_ = 0;
};

/// Pinned host memory that is kept for the next store when one is done: pinning tens of gigabytes takes longer than a
/// replay. New blocks are touched by several threads and registered.
class pinned_arena {
 public:
  explicit pinned_arena(int threads) : threads_(threads) {}
  pinned_arena(const pinned_arena&) = delete;
  pinned_arena& operator=(const pinned_arena&) = delete;
  ~pinned_arena();
  flashmemory::memory_resource resource() noexcept;
  /// Gives back what no store uses.
  void trim() noexcept;

 private:
  void* take(std::size_t bytes);
  void give(void* block, std::size_t bytes);

  int threads_;
  std::map<std::size_t, std::vector<void*>> free_;  ///< by size
};

}  // namespace replay
