// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/io/output_file.hpp>

#include "src/core/format.hpp"
#include "src/io/atomic_file.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

[[noreturn]] void fail(const char* action, const std::string& path, int reason) {
  throw io_failure(status::io_error, formatted("cannot {} {}: {}", action, path, std::strerror(reason)));
}

/// Something that is written to as it is. A folder is an error.
bool is_special(const std::string& path) {
  struct stat about {};
  if (::stat(path.c_str(), &about) != 0) return false;
  if (S_ISDIR(about.st_mode)) fail("write", path, EISDIR);
  return !S_ISREG(about.st_mode);
}

void write_directly(const std::string& path, std::string_view content) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) fail("open", path, errno);
  while (!content.empty()) {
    const ssize_t written = ::write(descriptor, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int reason = errno;
      ::close(descriptor);
      fail("write", path, reason);
    }
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  if (::close(descriptor) != 0 && errno != EINTR) fail("close", path, errno);
}

}  // namespace

void write_file(const std::string& path, std::string_view content) {
  if (is_special(path)) return write_directly(path, content);
  detail::atomic_file file(path);
  file.write(content.data(), content.size());
  file.commit();
}

void check_output_file(const std::string& path) {
  if (path.empty()) throw io_failure(status::io_error, "a file without a name cannot be written");
  if (is_special(path)) return;
  const detail::atomic_file probe(path);  // its destructor removes it
}

void check_output_folder(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.empty()) throw io_failure(status::io_error, "a folder without a name cannot be made");
  std::error_code error;
  fs::path at = fs::absolute(path, error);
  if (error) fail("find", path, error.value());
  // The nearest one that is there must take the next.
  while (!fs::exists(at, error)) {
    if (error && error != std::errc::no_such_file_or_directory) fail("look at", path, error.value());
    if (!at.has_parent_path() || at.parent_path() == at) fail("make", path, ENOENT);
    at = at.parent_path();
  }
  if (!fs::is_directory(at, error)) fail("make", path, ENOTDIR);
  try {
    const detail::atomic_file probe((at / "flashmemory").string());
  } catch (const io_failure&) {
    fail("write into", path, errno);
  }
}

}  // namespace v0
}  // namespace flashmemory
