// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/memory.hpp>
#include <limits>
#include <string>
#include <utility>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Memory of a memory_resource, 64-byte aligned, given back by the destructor.
class buffer {
 public:
  buffer() = default;

  /// \throws admission_error naming `purpose` if the resource has no such block
  buffer(const memory_resource& memory, std::size_t bytes, const char* purpose);
  ~buffer() { release(); }
  buffer(buffer&& other) noexcept
      : memory_(other.memory_),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    if (this != &other) {
      release();
      memory_ = other.memory_;
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }

  template <class T>
  T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  void release() noexcept {
    if (data_ != nullptr) memory_.deallocate(memory_.context, data_, bytes_, alignment);
    data_ = nullptr;
  }

  static constexpr std::size_t alignment = 64;
  memory_resource memory_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Throws argument_error.
[[noreturn]] void refuse(const std::string& message);

/// Lays out arrays in one block; every array starts on 64 bytes.
class block_layout {
 public:
  /// \throws argument_error if that is more than can be addressed
  template <class T>
  std::size_t add(std::int64_t count) {
    constexpr std::size_t limit = std::numeric_limits<std::size_t>::max() / 4;
    const auto n = static_cast<std::size_t>(count);
    if (n > (limit - bytes_) / sizeof(T)) refuse("max_tokens needs more memory than can be addressed");
    const std::size_t at = bytes_;
    bytes_ += (n * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
