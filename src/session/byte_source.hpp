// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Bytes of known number that are read from front to back.
class byte_source {
 public:
  virtual ~byte_source() = default;
  byte_source(const byte_source&) = delete;
  byte_source& operator=(const byte_source&) = delete;

  virtual std::uint64_t size() const noexcept = 0;

  /// The next `bytes` bytes. \throws format_error naming `field` if fewer are left; io_failure
  virtual void read(void* data, std::size_t bytes, const char* field) = 0;

  /// For messages.
  virtual const std::string& name() const noexcept = 0;

 protected:
  byte_source() = default;
};

/// A regular file.
class file_source final : public byte_source {
 public:
  /// \throws io_failure
  explicit file_source(std::string path);
  ~file_source() override;
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
class memory_source final : public byte_source {
 public:
  memory_source(const std::byte* data, std::size_t bytes, std::string name)
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

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
