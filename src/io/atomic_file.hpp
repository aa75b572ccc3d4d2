// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <flashmemory/config.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// A file that appears under its name whole or not at all: written to a temporary file in the same folder,
/// then synced and renamed. The destructor removes what was not committed.
class FLASHMEMORY_API atomic_file {
 public:
  /// \throws io_failure naming `path` and the reason, as all members do
  explicit atomic_file(std::string path);
  ~atomic_file();
  atomic_file(const atomic_file&) = delete;
  atomic_file& operator=(const atomic_file&) = delete;

  void write(const void* data, std::size_t bytes);

  /// Syncs the bytes, renames the file over `path`, syncs the folder. Once; nothing may be written after it.
  void commit();

  const std::string& path() const noexcept { return path_; }

 private:
  [[noreturn]] void fail(const char* action);

  std::string path_;
  std::string temporary_;  // empty once nothing is left to remove
  int descriptor_ = -1;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
