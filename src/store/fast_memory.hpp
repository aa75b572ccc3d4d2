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

/// The only way to memory of the fast tier: counts every byte and never passes the budget. Tables lie in host
/// memory; data (slots and index keys) may lie elsewhere.
class fast_memory {
 public:
  fast_memory(memory_resource resource, std::size_t budget) noexcept
      : fast_memory(resource, resource, budget) {}
  fast_memory(memory_resource tables, memory_resource data, std::size_t budget) noexcept
      : tables_(tables), data_(data), budget_(budget) {}
  fast_memory(const fast_memory&) = delete;
  fast_memory& operator=(const fast_memory&) = delete;

  /// Null if the budget or the resource has no room.
  void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
    return take(tables_, bytes, alignment);
  }
  void* allocate_data(std::size_t bytes, std::size_t alignment) noexcept {
    return take(data_, bytes, alignment);
  }

  void release(void* block, std::size_t bytes, std::size_t alignment) noexcept {
    give(tables_, block, bytes, alignment);
  }
  void release_data(void* block, std::size_t bytes, std::size_t alignment) noexcept {
    give(data_, block, bytes, alignment);
  }

  /// Counts memory that is taken from elsewhere; false if the budget has no room for it.
  bool charge(std::size_t bytes) noexcept {
    if (!has_room(bytes)) return false;
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
    return true;
  }
  void discharge(std::size_t bytes) noexcept { in_use_ -= bytes; }

  bool has_room(std::size_t bytes) const noexcept { return bytes <= budget_ - in_use_; }
  std::size_t in_use() const noexcept { return in_use_; }
  std::size_t peak() const noexcept { return peak_; }
  std::size_t budget() const noexcept { return budget_; }

 private:
  void* take(const memory_resource& from, std::size_t bytes, std::size_t alignment) noexcept {
    if (!has_room(bytes)) return nullptr;
    void* const block = from.allocate(from.context, bytes, alignment);
    if (!block) return nullptr;
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
    return block;
  }
  void give(const memory_resource& to, void* block, std::size_t bytes, std::size_t alignment) noexcept {
    if (!block) return;
    to.deallocate(to.context, block, bytes, alignment);
    in_use_ -= bytes;
  }

  memory_resource tables_;
  memory_resource data_;
  std::size_t budget_;
  std::size_t in_use_ = 0;
  std::size_t peak_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
