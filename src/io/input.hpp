// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/io/byte_stream.hpp>
#include <limits>
#include <string>
#include <utility>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Bytes that are read from front to back.
class FLASHMEMORY_API input {
 public:
  static constexpr std::uint64_t unknown_size = std::numeric_limits<std::uint64_t>::max();

  virtual ~input() = default;
  input(const input&) = delete;
  input& operator=(const input&) = delete;

  /// How many there are in all, or unknown_size.
  virtual std::uint64_t size() const noexcept = 0;

  /// The next `bytes` bytes. \throws format_error naming `field` if fewer are left; io_failure
  virtual void read(void* data, std::size_t bytes, const char* field) = 0;

  /// For messages.
  virtual const std::string& name() const noexcept = 0;

 protected:
  input() = default;
};

/// A plain file.
class FLASHMEMORY_API file_input final : public input {
 public:
  /// \throws io_failure; never waits for a writer of a FIFO
  explicit file_input(std::string path);
  ~file_input() override;
  std::uint64_t size() const noexcept override { return size_; }
  void read(void* data, std::size_t bytes, const char* field) override;
  const std::string& name() const noexcept override { return path_; }

 private:
  std::string path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::uint64_t at_ = 0;
};

/// Borrowed memory.
class FLASHMEMORY_API memory_input final : public input {
 public:
  memory_input(const std::byte* data, std::size_t bytes, std::string name)
      : data_(data), size_(bytes), name_(std::move(name)) {}
  std::uint64_t size() const noexcept override { return size_; }
  void read(void* data, std::size_t bytes, const char* field) override;
  const std::string& name() const noexcept override { return name_; }

 private:
  const std::byte* data_;
  std::size_t size_;
  std::size_t at_ = 0;
  std::string name_;
};

/// An engine's source.
class FLASHMEMORY_API source_input final : public input {
 public:
  /// \throws argument_error if it lacks a function
  explicit source_input(const byte_source& source);
  std::uint64_t size() const noexcept override { return unknown_size; }
  void read(void* data, std::size_t bytes, const char* field) override;
  const std::string& name() const noexcept override { return name_; }

 private:
  byte_source source_;
  std::string name_ = "byte source";
  std::uint64_t at_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
