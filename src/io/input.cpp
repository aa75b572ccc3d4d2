// SPDX-License-Identifier: MIT
#include "src/io/input.hpp"

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

file_input::file_input(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a FIFO would otherwise wait for a writer before it can be refused.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail(path_, "open", std::strerror(errno));
  struct stat facts;
  const bool known = ::fstat(descriptor_, &facts) == 0;
  if (!known || !S_ISREG(facts.st_mode)) {
    const int reason = errno;
    ::close(descriptor_);
    fail(path_, "read", known ? "not a plain file" : std::strerror(reason));
  }
  size_ = static_cast<std::uint64_t>(facts.st_size);
}

file_input::~file_input() { ::close(descriptor_); }

void file_input::read(void* data, std::size_t bytes, const char* field) {
  if (bytes > size_ - at_) ends(path_, field, bytes, size_ - at_);
  auto* out = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t got = ::read(descriptor_, out, std::min<std::size_t>(bytes, std::size_t{1} << 30));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_, "read", std::strerror(errno));
    if (got == 0) ends(path_, field, bytes, 0);
    out += got;
    bytes -= static_cast<std::size_t>(got);
    at_ += static_cast<std::uint64_t>(got);
  }
}

void memory_input::read(void* data, std::size_t bytes, const char* field) {
  if (bytes > size_ - at_) ends(name_, field, bytes, size_ - at_);
  if (bytes > 0) std::memcpy(data, data_ + at_, bytes);
  at_ += bytes;
}

source_input::source_input(const byte_source& source) : source_(source) {
  if (source.read == nullptr) throw argument_error(status::null_data, "byte_source::read is null");
}

void source_input::read(void* data, std::size_t bytes, const char* field) {
  auto* out = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const std::int64_t got = source_.read(source_.context, out, bytes);
    if (got == 0) ends(name_, field, bytes, 0);
    if (got < 0 || static_cast<std::uint64_t>(got) > bytes)
      fail(name_, "read", formatted("it returned {} for {} bytes after {}", got, bytes, at_).c_str());
    out += got;
    bytes -= static_cast<std::size_t>(got);
    at_ += static_cast<std::uint64_t>(got);
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
