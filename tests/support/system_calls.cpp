// SPDX-License-Identifier: MIT
#include "tests/support/system_calls.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>

namespace system_calls {
namespace {

thread_local watch* in_force = nullptr;

std::string path_of(int descriptor) {
  char path[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const auto follow =
      reinterpret_cast<ssize_t (*)(const char*, char*, size_t)>(::dlsym(RTLD_NEXT, "readlink"));
  const ssize_t length = follow(link.c_str(), path, sizeof path);
  return length > 0 ? std::string(path, std::size_t(length)) : std::string();
}

template <class F>
F real(const char* name) {
  return reinterpret_cast<F>(::dlsym(RTLD_NEXT, name));
}

/// Whether the call is to fail; errno is set then.
bool fails(const char* name, const std::string& path) {
  watch* const w = in_force;
  if (w == nullptr) return false;
  in_force = nullptr;  // what the watch does itself is not watched
  const int error = w->disturb(name, path);
  in_force = w;
  errno = error;
  return error != 0;
}

std::size_t part_of(std::size_t bytes) {
  return in_force != nullptr && in_force->how() == watch::mode::shorten && bytes > 1 ? bytes / 2 : bytes;
}

}  // namespace

watch::watch(mode how, int which, int error) : how_(how), which_(which), error_(error) { in_force = this; }
watch::~watch() { in_force = nullptr; }

int watch::disturb(const char* name, const std::string& path) {
  calls_.push_back({name, path});
  if (before) before(calls_.back());
  const std::string n = name;
  if (how_ == mode::fail) return int(calls_.size()) - 1 == which_ ? error_ : 0;
  if (how_ != mode::signals || (n != "write" && n != "read" && n != "fsync")) return 0;
  interrupted_ = !interrupted_;
  return interrupted_ ? EINTR : 0;
}

}  // namespace system_calls

using system_calls::fails;
using system_calls::part_of;
using system_calls::path_of;
using system_calls::real;

extern "C" {

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const bool creates = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
  const mode_t mode = creates ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (fails("open", path)) return -1;
  return real<int (*)(const char*, int, ...)>("open")(path, flags, mode);
}
ssize_t write(int file, const void* data, size_t bytes) {
  if (fails("write", path_of(file))) return -1;
  return real<ssize_t (*)(int, const void*, size_t)>("write")(file, data, part_of(bytes));
}
ssize_t read(int file, void* data, size_t bytes) {
  if (fails("read", path_of(file))) return -1;
  return real<ssize_t (*)(int, void*, size_t)>("read")(file, data, part_of(bytes));
}
ssize_t pread(int file, void* data, size_t bytes, off_t at) {
  if (fails("read", path_of(file))) return -1;
  return real<ssize_t (*)(int, void*, size_t, off_t)>("pread")(file, data, part_of(bytes), at);
}
int fsync(int file) {
  if (fails("fsync", path_of(file))) return -1;
  return real<int (*)(int)>("fsync")(file);
}
int rename(const char* from, const char* to) noexcept {
  if (fails("rename", to)) return -1;
  return real<int (*)(const char*, const char*)>("rename")(from, to);
}
int fchmod(int file, mode_t mode) noexcept {
  if (fails("fchmod", path_of(file))) return -1;
  return real<int (*)(int, mode_t)>("fchmod")(file, mode);
}
int flock(int file, int how) noexcept {
  if (fails("flock", path_of(file))) return -1;
  return real<int (*)(int, int)>("flock")(file, how);
}
int fstat(int file, struct stat* facts) noexcept {
  if (fails("fstat", path_of(file))) return -1;
  return real<int (*)(int, struct stat*)>("fstat")(file, facts);
}
int stat(const char* path, struct stat* facts) noexcept {
  if (fails("stat", path)) return -1;
  return real<int (*)(const char*, struct stat*)>("stat")(path, facts);
}
ssize_t readlink(const char* path, char* target, size_t bytes) noexcept {
  if (fails("readlink", path)) return -1;
  return real<ssize_t (*)(const char*, char*, size_t)>("readlink")(path, target, bytes);
}
int faccessat(int folder, const char* path, int how, int flags) noexcept {
  if (fails("faccessat", path)) return -1;
  return real<int (*)(int, const char*, int, int)>("faccessat")(folder, path, how, flags);
}

}  // extern "C"
