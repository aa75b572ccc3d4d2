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

class file_backing final : public backing_store {
 public:
  file_backing(const std::string& path, std::int64_t records, std::size_t record_bytes)
      : path_(path), records_(records), record_bytes_(record_bytes) {
    if (records < 1 || record_bytes < 1)
      throw argument_error(status::bad_argument,
                           formatted("file backing store {}: {} records of {} bytes; both must be at least 1",
                                     path, records, record_bytes));
    constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
    if (std::uint64_t(records) > largest / record_bytes)
      throw argument_error(status::bad_argument,
                           formatted("file backing store {}: {} records x {} bytes pass the largest file",
                                     path, records, record_bytes));
    do file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);
    while (file_ < 0 && errno == EINTR);
    if (file_ < 0)
      throw io_failure(status::io_error,
                       formatted("file backing store {}: cannot be created: {}", path, std::strerror(errno)));
    // Emptied only once it is known to be a plain file: a device or a pipe has no records to hold, and must
    // not be removed at the end either.
    struct stat facts = {};
    if (::fstat(file_, &facts) != 0 || !S_ISREG(facts.st_mode)) {
      ::close(file_);
      throw io_failure(status::io_error, formatted("file backing store {}: not a plain file", path));
    }
    const auto size = static_cast<off_t>(std::uint64_t(records) * record_bytes);
    if (::ftruncate(file_, 0) != 0 || ::ftruncate(file_, size) != 0) {
      const int reason = errno;
      ::close(file_);
      ::unlink(path.c_str());
      throw io_failure(status::io_error, formatted("file backing store {}: cannot be sized to {} bytes: {}",
                                                   path, size, std::strerror(reason)));
    }
  }

  ~file_backing() override {
    ::close(file_);
    ::unlink(path_.c_str());
  }

  status write(std::int64_t record, std::size_t offset, const void* data, std::size_t bytes,
               int* os_error) noexcept override {
    if (os_error) *os_error = 0;
    if (!inside(record, offset, bytes)) return status::out_of_range;
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

  std::string path_;
  std::int64_t records_;
  std::size_t record_bytes_;
  int file_ = -1;
};

}  // namespace

std::unique_ptr<backing_store> make_file_backing(const std::string& path, std::int64_t records,
                                                 std::size_t record_bytes) {
  return std::make_unique<file_backing>(path, records, record_bytes);
}

}  // namespace v0
}  // namespace flashmemory
