// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Bytes that wait to be written, in blocks: what it takes is known exactly, and growing copies nothing.
class column {
 public:
  static constexpr std::size_t least_block = 256;
  static constexpr std::size_t largest_block = std::size_t{64} << 10;

  std::size_t bytes() const noexcept { return bytes_; }
  bool empty() const noexcept { return bytes_ == 0; }

  /// Bytes of memory that the blocks take.
  std::size_t allocated() const noexcept { return allocated_; }

  /// Bytes of memory that appending `bytes` more would allocate.
  std::size_t growth(std::size_t bytes) const noexcept {
    std::size_t room = allocated_ - bytes_, grown = 0;
    while (room < bytes) {
      const std::size_t added = next_block(allocated_ + grown);
      grown += added;
      room += added;
    }
    return grown;
  }

  /// The blocks that `bytes` more need, so that append() of them cannot fail.
  void reserve(std::size_t bytes) {
    while (allocated_ - bytes_ < bytes) {
      const std::size_t size = next_block(allocated_);
      blocks_.reserve(blocks_.size() + 1);
      blocks_.push_back({std::make_unique<std::byte[]>(size), size});
      allocated_ += size;
    }
  }

  void append(const void* data, std::size_t bytes) {
    reserve(bytes);
    const auto* from = static_cast<const std::byte*>(data);
    while (bytes > 0) {
      block& to = blocks_[current_];
      const std::size_t part = std::min(bytes, to.size - filled_);
      std::memcpy(to.data.get() + filled_, from, part);
      from += part;
      bytes -= part;
      bytes_ += part;
      filled_ += part;
      if (filled_ == to.size) {
        ++current_;
        filled_ = 0;
      }
    }
  }

  template <class T>
  void append_value(const T& value) {
    append(&value, sizeof value);
  }

  /// Calls f(data, bytes) for the content, in order.
  template <class F>
  void each_block(F&& f) const {
    std::size_t left = bytes_;
    for (const block& b : blocks_) {
      const std::size_t part = std::min(left, b.size);
      if (part > 0) f(b.data.get(), part);
      left -= part;
    }
  }

  void clear() noexcept {
    blocks_.clear();
    bytes_ = allocated_ = current_ = filled_ = 0;
  }

 private:
  struct block {
    std::unique_ptr<std::byte[]> data;
    std::size_t size;
  };

  /// Blocks grow with the column, so that small ones stay small.
  static std::size_t next_block(std::size_t allocated) noexcept {
    return std::clamp(allocated, least_block, largest_block);
  }

  std::vector<block> blocks_;
  std::size_t bytes_ = 0;
  std::size_t allocated_ = 0;
  std::size_t current_ = 0;  ///< block that is being filled
  std::size_t filled_ = 0;   ///< bytes of it
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
