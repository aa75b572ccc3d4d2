// SPDX-License-Identifier: MIT
#include "src/io/leftovers.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <exception>
#include <memory>
#include <string_view>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

constexpr std::string_view ending = ".tmp";

bool all_digits(std::string_view text) noexcept {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

void remove_if_free(const std::string& name) noexcept {
  const int file = ::open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0) return;
  struct stat held, named;
  // Of the lock's file the name may be another one's by now.
  if (::flock(file, LOCK_EX | LOCK_NB) == 0 && ::fstat(file, &held) == 0 && S_ISREG(held.st_mode) &&
      ::lstat(name.c_str(), &named) == 0 && held.st_ino == named.st_ino && held.st_dev == named.st_dev)
    ::unlink(name.c_str());
  ::close(file);
}

}  // namespace

std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string temporary_name(const std::string& path) {
  static std::atomic<unsigned> serial{0};
  return formatted("{}.{}-{}{}", path, ::getpid(), serial.fetch_add(1), ending);
}

bool is_temporary_of(std::string_view name, std::string_view base) noexcept {
  if (name.size() <= base.size() + 1 + ending.size() || name.substr(0, base.size()) != base ||
      name[base.size()] != '.' || name.substr(name.size() - ending.size()) != ending)
    return false;
  const std::string_view middle = name.substr(base.size() + 1, name.size() - base.size() - 1 - ending.size());
  const auto dash = middle.find('-');
  return dash != std::string_view::npos && all_digits(middle.substr(0, dash)) &&
         all_digits(middle.substr(dash + 1));
}

bool hold_temporary(int descriptor) noexcept {
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0)
    return errno != EWOULDBLOCK;  // where nobody can lock, nobody takes it for left behind
  struct stat facts;
  return ::fstat(descriptor, &facts) != 0 || facts.st_nlink > 0;
}

void remove_leftovers(const std::string& path) noexcept {
  try {
    const std::string folder = folder_of(path);
    const std::string base = path.substr(path.rfind('/') + 1);
    const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(folder.c_str()), ::closedir);
    if (!entries) return;
    while (const dirent* entry = ::readdir(entries.get()))
      if (is_temporary_of(entry->d_name, base)) remove_if_free(folder + '/' + entry->d_name);
  } catch (const std::exception&) {  // no memory; they stay for the next one
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
