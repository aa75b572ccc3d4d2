// SPDX-License-Identifier: MIT
#include "src/session/byte_source.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <flashmemory/error.hpp>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

namespace {

[[noreturn]] void fail(const std::string& path, const char* action, const char* reason) {
  throw io_failure(status::io_error, formatted("{}: cannot {}: {}", path, action, reason));
}

[[noreturn]] void ends(const std::string& name, const char* field, std::uint64_t wanted, std::uint64_t left) {
  throw format_error(status::bad_argument,
                     formatted("{}: ends within {}: {} bytes wanted, {} left", name, field, wanted, left));
}

}  // namespace

file_source::file_source(std::string path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) fail(path_, "open", std::strerror(errno));
  struct stat about;
  if (::fstat(descriptor_, &about) != 0 || !S_ISREG(about.st_mode)) {
    const int error = errno;
    const bool regular = S_ISREG(about.st_mode);
    ::close(descriptor_);
    fail(path_, "read", regular ? std::strerror(error) : "not a regular file");
  }
  size_ = static_cast<std::uint64_t>(about.st_size);
}

file_source::~file_source() { ::close(descriptor_); }

void file_source::read(void* data, std::size_t bytes, const char* field) {
  if (bytes > size_ - at_) ends(path_, field, bytes, size_ - at_);
  auto* out = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t got = ::read(descriptor_, out, std::min<std::size_t>(bytes, 1u << 30));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_, "read", std::strerror(errno));
    if (got == 0) ends(path_, field, bytes, 0);
    out += got;
    bytes -= static_cast<std::size_t>(got);
    at_ += static_cast<std::uint64_t>(got);
  }
}

void memory_source::read(void* data, std::size_t bytes, const char* field) {
  if (bytes > size_ - at_) ends(name_, field, bytes, size_ - at_);
  if (bytes > 0) std::memcpy(data, data_ + at_, bytes);
  at_ += bytes;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
