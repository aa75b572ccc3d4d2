// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>
#include <vector>

/// System calls of this program that tests can watch and fail. Link support/system_calls.cpp: its functions come before
/// the C library's, the flashmemory library's calls included.
namespace system_calls {

struct call {
  std::string name;
  std::string path;  ///< the argument, or what the descriptor was opened as
};

/// While it lives the calls of this thread are listed, and those go wrong that it says.
class watch {
 public:
  enum class mode {
    list,     ///< only listed
    fail,     ///< call number `which`, from 0, fails with `error`
    shorten,  ///< write() and read() move half of what they are asked for
    signals,  ///< every write(), read() and fsync() is interrupted once before it works
  };
  explicit watch(mode how = mode::list, int which = -1, int error = 5);
  ~watch();
  watch(const watch&) = delete;
  watch& operator=(const watch&) = delete;

  /// Called before each call that is listed.
  std::function<void(const call&)> before;

  const std::vector<call>& calls() const noexcept { return calls_; }

  /// For the functions.
  int disturb(const char* name, const std::string& path);
  mode how() const noexcept { return how_; }

 private:
  mode how_;
  int which_, error_;
  bool interrupted_ = false;
  std::vector<call> calls_;
};

}  // namespace system_calls
