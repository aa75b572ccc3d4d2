// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// `bytes`, so that what follows is aligned as everything in device memory is here.
constexpr std::size_t aligned_256(std::size_t bytes) noexcept { return (bytes + 255) / 256 * 256; }

/// Lays out arrays in one block of device or pinned memory, in two passes: sizes first, from a null base, then addresses.
class carver {
 public:
  explicit carver(std::byte* base) noexcept : base_(base) {}
  template <class T>
  T* take(std::int64_t count) noexcept {
    std::byte* const at = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += aligned_256(static_cast<std::size_t>(count) * sizeof(T));
    return reinterpret_cast<T*>(at);
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
