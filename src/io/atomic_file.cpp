// SPDX-License-Identifier: MIT
#include "src/io/atomic_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <flashmemory/error.hpp>
#include <utility>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

atomic_file::atomic_file(std::string path) : path_(std::move(path)) {
  static std::atomic<unsigned> serial{0};
  // Not mkstemp(): it would give the finished file mode 0600 whatever the umask says.
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::string name = formatted("{}.{}-{}.tmp", path_, ::getpid(), serial.fetch_add(1));
    descriptor_ = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) {
      temporary_ = std::move(name);
      return;
    }
    if (errno != EEXIST && errno != EINTR) break;  // EEXIST: left behind by a process that had our id
  }
  fail("create a temporary file for");
}

atomic_file::~atomic_file() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void atomic_file::fail(const char* action) {
  const int reason = errno;
  throw io_failure(status::io_error, formatted("cannot {} {}: {}", action, path_, std::strerror(reason)));
}

void atomic_file::write(const void* data, std::size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const std::size_t part = std::min<std::size_t>(bytes, std::size_t{1} << 30);
    const ssize_t written = ::write(descriptor_, from, part);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("write");
    }
    from += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void atomic_file::commit() {
  while (::fsync(descriptor_) != 0) {
    if (errno != EINTR) fail("sync");
  }
  const int closed = ::close(std::exchange(descriptor_, -1));
  if (closed != 0 && errno != EINTR) fail("close");
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename the temporary file to");
  temporary_.clear();

  // Without this the rename itself may be lost with the power, though never the file's bytes.
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) fail("open the folder of");
  const int synced = ::fsync(folder);
  const int reason = errno;
  ::close(folder);
  if (synced != 0 && reason != EINVAL && reason != ENOTSUP) {  // file systems that cannot sync folders
    errno = reason;
    fail("sync the folder of");
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
