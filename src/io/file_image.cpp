// SPDX-License-Identifier: MIT
#include "src/io/file_image.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <flashmemory/error.hpp>
#include <utility>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

file_image::file_image(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a FIFO would otherwise wait for a writer before it can be refused.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail("open", std::strerror(errno));
  struct stat facts;
  if (::fstat(descriptor_, &facts) != 0) fail("read", std::strerror(errno));
  if (!S_ISREG(facts.st_mode)) fail("read", S_ISDIR(facts.st_mode) ? std::strerror(EISDIR) : "no plain file");
  bytes_ = static_cast<std::size_t>(facts.st_size);
  changed_[0] = facts.st_mtim.tv_sec;
  changed_[1] = facts.st_mtim.tv_nsec;
  if (bytes_ == 0) return;
  void* const at =
      ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) fail("take memory to read", std::strerror(errno));
  data_ = static_cast<std::byte*>(at);
}

file_image::~file_image() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (data_) ::munmap(data_, bytes_);
}

void file_image::fail(const char* action, const char* reason) {
  const std::string message = formatted("cannot {} {}: {}", action, path_, reason);
  // Whoever constructs it gets no destructor.
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
  if (data_) ::munmap(std::exchange(data_, nullptr), bytes_);
  throw io_failure(status::io_error, message);
}

void file_image::read(std::size_t from, std::size_t to) {
  while (from < to) {
    const off_t data = ::lseek(descriptor_, static_cast<off_t>(from), SEEK_DATA);
    if (data < 0 && errno == ENXIO)
      return;  // a hole up to the end, or the end is here now: close() finds out
    const std::size_t begin = data < 0 ? from : static_cast<std::size_t>(data);
    if (begin >= to) return;
    const off_t hole = data < 0 ? -1 : ::lseek(descriptor_, data, SEEK_HOLE);
    const std::size_t end = hole < 0 ? to : std::min(to, static_cast<std::size_t>(hole));
    read_piece(begin, end);
    from = end;
  }
}

void file_image::read_piece(std::size_t from, std::size_t to) {
  while (from < to) {
    const ssize_t got =
        ::pread(descriptor_, data_ + from, std::min<std::size_t>(to - from, std::size_t{1} << 30),
                static_cast<off_t>(from));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read", std::strerror(errno));
    if (got == 0) fail("read", "it got shorter while it was read");
    from += static_cast<std::size_t>(got);
  }
}

void file_image::close() {
  struct stat facts;
  if (::fstat(descriptor_, &facts) != 0) fail("read", std::strerror(errno));
  if (static_cast<std::size_t>(facts.st_size) != bytes_ || facts.st_mtim.tv_sec != changed_[0] ||
      facts.st_mtim.tv_nsec != changed_[1])
    fail("read", "it was changed while it was read");
  ::close(std::exchange(descriptor_, -1));
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
