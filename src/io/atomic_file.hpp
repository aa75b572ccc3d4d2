// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <flashmemory/config.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// A file that appears under its name whole or not at all: written to a temporary file in the same folder,
/// then synced and renamed. The destructor removes what was not committed, and the next writer of the same path what a
/// killed one has left.
///
/// What a user has set up about the path stays: a symbolic link is followed, and a file that is replaced hands its
/// permissions, owner and group on. Its other names (hard links) keep the old content.
class FLASHMEMORY_API atomic_file {
 public:
  /// \param permissions  of a file that is new, less the umask
  /// \throws io_failure naming `path` and the reason, as all members do; also if what is there is no plain file or may
  ///     not be written
  explicit atomic_file(std::string path, unsigned permissions = 0666);
  ~atomic_file();
  atomic_file(const atomic_file&) = delete;
  atomic_file& operator=(const atomic_file&) = delete;

  void write(const void* data, std::size_t bytes);

  /// Syncs the bytes, renames the file over `path`, syncs the folder. Once; nothing may be written after it.
  void commit();

  const std::string& path() const noexcept { return path_; }

 private:
  [[noreturn]] void fail(const char* action);
  bool create(unsigned permissions);
  void take_over();

  std::string path_;
  std::string target_;     // what the links of `path_` lead to
  std::string temporary_;  // empty once nothing is left to remove
  int owner_;              // the process
  int descriptor_ = -1;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
