// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/store/backing_store.hpp>
#include <limits>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

/// A file that nobody else can open by a name, so that it belongs to one store, and goes with it however the process
/// ends. \returns its descriptor, or -1 with errno set
int open_nameless(const std::string& path) noexcept {
  constexpr mode_t own = S_IRUSR | S_IWUSR;
  int file = -1;
#ifdef O_TMPFILE
  const auto slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash == 0 ? 1 : slash);
  do file = ::open(folder.c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, own);
  while (file < 0 && errno == EINTR);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return file;
#endif
  // A file system without such files: it has its name for a moment.
  do file = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, own);
  while (file < 0 && errno == EINTR);
  if (file >= 0 && ::unlink(path.c_str()) != 0) {
    const int reason = errno;
    ::close(file);
    errno = reason;
    return -1;
  }
  return file;
}

class file_backing final : public backing_store {
 public:
  file_backing(const std::string& path, std::int64_t records, std::size_t record_bytes, bool reserves)
      : records_(records), record_bytes_(record_bytes), reserves_(reserves) {
    if (records < 1 || record_bytes < 1)
      throw argument_error(status::bad_argument,
                           formatted("file backing store {}: {} records of {} bytes; both must be at least 1",
                                     path, records, record_bytes));
    constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
    if (std::uint64_t(records) > largest / record_bytes)
      throw argument_error(status::bad_argument,
                           formatted("file backing store {}: {} records x {} bytes pass the largest file",
                                     path, records, record_bytes));
    struct stat facts = {};
    if (::lstat(path.c_str(), &facts) == 0)
      throw io_failure(status::io_error,
                       formatted("file backing store {}: there is {} of that name already, which is not this "
                                 "store's; name one that does not exist",
                                 path,
                                 S_ISREG(facts.st_mode)   ? "a file"
                                 : S_ISDIR(facts.st_mode) ? "a folder"
                                                          : "something"));
    file_ = open_nameless(path);
    if (file_ < 0)
      throw io_failure(status::io_error,
                       formatted("file backing store {}: cannot be created: {}", path, std::strerror(errno)));
  }

  ~file_backing() override { ::close(file_); }

  status reserve(std::int64_t records, int* os_error) noexcept override {
    if (os_error) *os_error = 0;
    if (records < 0 || records > records_) return status::out_of_range;
    if (!reserves_ || records <= reserved_) return status::ok;
    if (!is_owner()) return refused(EPERM, os_error);
    const off_t from = at(reserved_, 0), bytes = at(records, 0) - from;
    int reason;
    do reason = ::posix_fallocate(file_, from, bytes);
    while (reason == EINTR);
    if (reason != 0) {
#ifdef FALLOC_FL_PUNCH_HOLE
      // What was found before the disk was full is for others to use.
      static_cast<void>(::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, bytes));
#endif
      return refused(reason, os_error);
    }
    reserved_ = records;
    return status::ok;
  }

  status write(std::int64_t record, std::size_t offset, const void* data, std::size_t bytes,
               int* os_error) noexcept override {
    if (os_error) *os_error = 0;
    if (!inside(record, offset, bytes)) return status::out_of_range;
    if (!is_owner()) return refused(EPERM, os_error);
    const auto* from = static_cast<const char*>(data);
    off_t position = at(record, offset);
    while (bytes > 0) {
      const ssize_t done = ::pwrite(file_, from, bytes, position);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return refused(done < 0 ? errno : ENOSPC, os_error);
      from += done;
      position += done;
      bytes -= std::size_t(done);
    }
    return status::ok;
  }

  status read(std::int64_t record, std::size_t offset, void* data, std::size_t bytes,
              int* os_error) const noexcept override {
    if (os_error) *os_error = 0;
    if (!inside(record, offset, bytes)) return status::out_of_range;
    auto* to = static_cast<char*>(data);
    off_t position = at(record, offset);
    while (bytes > 0) {
      const ssize_t done = ::pread(file_, to, bytes, position);
      if (done < 0 && errno == EINTR) continue;
      // The end of the file before the end of a record: somebody cut the file.
      if (done <= 0) return refused(done < 0 ? errno : EIO, os_error);
      to += done;
      position += done;
      bytes -= std::size_t(done);
    }
    return status::ok;
  }

  bool needs_verification() const noexcept override { return true; }

 private:
  /// A forked child has the parent's file, and must not write into what the parent goes on using.
  bool is_owner() const noexcept { return ::getpid() == owner_; }
  static status refused(int reason, int* os_error) noexcept {
    if (os_error) *os_error = reason;
    return status::io_error;
  }
  bool inside(std::int64_t record, std::size_t offset, std::size_t bytes) const noexcept {
    return record >= 0 && record < records_ && offset <= record_bytes_ && bytes <= record_bytes_ - offset;
  }
  off_t at(std::int64_t record, std::size_t offset) const noexcept {
    return static_cast<off_t>(std::uint64_t(record) * record_bytes_ + offset);
  }

  std::int64_t records_;
  std::size_t record_bytes_;
  bool reserves_;
  std::int64_t reserved_ = 0;  ///< records whose space is taken
  pid_t owner_ = ::getpid();
  int file_ = -1;
};

}  // namespace

std::unique_ptr<backing_store> make_file_backing(const std::string& path, std::int64_t records,
                                                 std::size_t record_bytes, bool reserve) {
  return std::make_unique<file_backing>(path, records, record_bytes, reserve);
}

}  // namespace v0
}  // namespace flashmemory
