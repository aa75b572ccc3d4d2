// SPDX-License-Identifier: MIT
#include "src/io/atomic_file.hpp"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <flashmemory/error.hpp>
#include <utility>

#include "src/core/format.hpp"
#include "src/io/leftovers.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

/// Where the links at the end of a path lead, which need not exist; empty with errno set if nowhere.
std::string target_of(std::string path) {
  constexpr int most_links = 40;
  for (int followed = 0; followed <= most_links; ++followed) {
    char link[PATH_MAX];
    const ssize_t length = ::readlink(path.c_str(), link, sizeof link);
    if (length < 0)
      return errno == EINVAL || errno == ENOENT ? path : std::string();  // no link, or nothing there
    if (length == static_cast<ssize_t>(sizeof link)) {
      errno = ENAMETOOLONG;
      return {};
    }
    const std::string to(link, static_cast<std::size_t>(length));
    path = !to.empty() && to.front() == '/' ? to : folder_of(path) + '/' + to;
  }
  errno = ELOOP;
  return {};
}

}  // namespace

atomic_file::atomic_file(std::string path, unsigned permissions)
    : path_(std::move(path)), target_(target_of(path_)), owner_(::getpid()) {
  if (path_.empty()) errno = ENOENT;
  if (target_.empty()) fail("write");
  struct stat old;
  const bool replaces = ::stat(target_.c_str(), &old) == 0;
  if (!replaces && errno != ENOENT) fail("write");
  if (replaces && !S_ISREG(old.st_mode)) {
    errno = S_ISDIR(old.st_mode) ? EISDIR : EINVAL;
    fail(S_ISDIR(old.st_mode) ? "write" : "write what is no plain file:");
  }
  // A rename asks only the folder; that a file is read-only is what its owner wants all the same.
  if (replaces && ::faccessat(AT_FDCWD, target_.c_str(), W_OK, AT_EACCESS) != 0) fail("write");

  remove_leftovers(target_);
  // Not mkstemp(): it would give a new file mode 0600 whatever was asked for. What is replaced may be private, so the
  // permissions of its successor are widened only once it is clear to whom.
  for (int attempt = 0; attempt < 100 && temporary_.empty(); ++attempt)
    if (!create(replaces ? 0600 : permissions)) break;
  if (temporary_.empty()) fail("create a temporary file for");
  if (replaces) take_over();
}

/// One try to get a temporary file; false if there is no use in others.
bool atomic_file::create(unsigned permissions) {
  std::string name = temporary_name(target_);
  descriptor_ = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, permissions);
  if (descriptor_ < 0) return errno == EEXIST || errno == EINTR;  // EEXIST: of a process that had our id
  if (hold_temporary(descriptor_)) {
    temporary_ = std::move(name);
  } else {
    ::close(std::exchange(descriptor_, -1));
    errno = EBUSY;
  }
  return true;
}

/// Gives the temporary file the owner, group and permissions of the file that it will replace.
void atomic_file::take_over() {
  struct stat old, made;
  bool good = ::stat(target_.c_str(), &old) == 0 && ::fstat(descriptor_, &made) == 0;
  mode_t mode = old.st_mode & 07777;
  if (good && (old.st_uid != made.st_uid || old.st_gid != made.st_gid) &&
      ::fchown(descriptor_, old.st_uid, old.st_gid) != 0) {
    // Another one's file, which stays ours from now on. What its group may do, ours may not.
    if (old.st_gid != made.st_gid && ::fchown(descriptor_, static_cast<uid_t>(-1), old.st_gid) != 0)
      mode &= ~static_cast<mode_t>(S_IRWXG);
    mode &= ~static_cast<mode_t>(S_ISUID | S_ISGID);
  }
  good = good && ::fchmod(descriptor_, mode) == 0;
  if (good) return;
  const int reason = errno;
  ::close(std::exchange(descriptor_, -1));
  ::unlink(temporary_.c_str());
  errno = reason;
  fail("keep the permissions of");
}

atomic_file::~atomic_file() {
  if (!temporary_.empty() && ::getpid() == owner_) ::unlink(temporary_.c_str());  // else it is our parent's
  if (descriptor_ >= 0) ::close(descriptor_);
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
    if (written < 0 && errno == EINTR) continue;
    if (written == 0) errno = ENOSPC;
    if (written <= 0) fail("write");
    from += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void atomic_file::commit() {
  while (::fsync(descriptor_) != 0) {
    if (errno != EINTR) fail("sync");
  }
  // Closed after the rename, since until then the open descriptor keeps others from tidying the file away. Errors of
  // close() have been fsync()'s.
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail("rename the temporary file to");
  temporary_.clear();
  ::close(std::exchange(descriptor_, -1));

  // Without this the rename itself may be lost with the power, though never the file's bytes.
  const int folder = ::open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) fail("open the folder of");
  int synced;
  do synced = ::fsync(folder);
  while (synced != 0 && errno == EINTR);
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
