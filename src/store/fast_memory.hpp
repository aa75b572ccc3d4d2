// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/memory.hpp>
#include <limits>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Sizes come from options, so sums and products of them must not wrap: they stick at the largest value,
/// which no budget covers.
inline std::size_t saturating_add(std::size_t a, std::size_t b) noexcept {
  return a > std::numeric_limits<std::size_t>::max() - b ? std::numeric_limits<std::size_t>::max() : a + b;
}

inline std::size_t saturating_multiply(std::size_t a, std::size_t b) noexcept {
  return b != 0 && a > std::numeric_limits<std::size_t>::max() / b ? std::numeric_limits<std::size_t>::max()
                                                                   : a * b;
}

/// The only way to memory of the fast tier: counts every byte and never passes the budget.
class fast_memory {
 public:
  fast_memory(memory_resource resource, std::size_t budget) noexcept : resource_(resource), budget_(budget) {}
  fast_memory(const fast_memory&) = delete;
  fast_memory& operator=(const fast_memory&) = delete;

  /// Null if the budget or the resource has no room.
  void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
    if (!has_room(bytes)) return nullptr;
    void* const block = resource_.allocate(resource_.context, bytes, alignment);
    if (!block) return nullptr;
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
    return block;
  }

  void release(void* block, std::size_t bytes, std::size_t alignment) noexcept {
    if (!block) return;
    resource_.deallocate(resource_.context, block, bytes, alignment);
    in_use_ -= bytes;
  }

  bool has_room(std::size_t bytes) const noexcept { return bytes <= budget_ - in_use_; }
  std::size_t in_use() const noexcept { return in_use_; }
  std::size_t peak() const noexcept { return peak_; }
  std::size_t budget() const noexcept { return budget_; }

 private:
  memory_resource resource_;
  std::size_t budget_;
  std::size_t in_use_ = 0;
  std::size_t peak_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
