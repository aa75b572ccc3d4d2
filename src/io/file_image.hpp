// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// A file's bytes in memory of the process' own. A mapped file would kill the process (SIGBUS) if somebody shortened it;
/// here that is an io_failure. Memory is taken as it is read, and holes of a sparse file take none.
class file_image {
 public:
  file_image() = default;
  /// Opens a plain file; nothing is read yet. \throws io_failure naming the path, as all members do
  explicit file_image(const std::string& path);
  ~file_image();
  file_image(const file_image&) = delete;
  file_image& operator=(const file_image&) = delete;

  /// Reads bytes [from, to) of it.
  void read(std::size_t from, std::size_t to);

  /// Nothing more will be read: lets go of the file, and makes sure that it is the one that was opened still.
  void close();

  /// Zero where nothing has been read.
  const std::byte* data() const noexcept { return data_; }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  [[noreturn]] void fail(const char* action, const char* reason);
  void read_piece(std::size_t from, std::size_t to);

  std::string path_;
  int descriptor_ = -1;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::int64_t changed_[2] = {};  // when it was written last
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
