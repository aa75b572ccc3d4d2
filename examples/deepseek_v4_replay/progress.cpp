// SPDX-License-Identifier: MIT
#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace replay {

progress_bar::progress_bar(bool asked_for)
    : terminal_(isatty(STDERR_FILENO) != 0), enabled_(asked_for || terminal_) {}

void progress_bar::title(std::string text) {
  title_ = std::move(text);
  stage_.clear();
}

void progress_bar::update(const char* what, std::int64_t done, std::int64_t total) {
  if (!enabled_ || total <= 0) return;
  const auto now = steady::now();
  const bool fresh = stage_ != what;
  stage_ = what;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  if (!terminal_) {
    if (fresh) fmt::print(stderr, "{:7.1f} s  {}: {}\n", elapsed, title_, what);
    return;
  }
  if (shown_ && !fresh && done < total && now - last_ < std::chrono::milliseconds(60)) return;
  last_ = now;
  shown_ = true;
  const double fraction = std::clamp(double(done) / double(total), 0.0, 1.0);
  const int full = static_cast<int>(std::lround(fraction * 32));
  fmt::print(stderr, "\r\x1b[K{} [{:#<{}}{:.<{}}] {:3.0f}%  {:.0f} s  {}", title_, "", full, "", 32 - full,
             100 * fraction, elapsed, what);
  std::fflush(stderr);
}

void progress_bar::clear() {
  if (shown_) fmt::print(stderr, "\r\x1b[K");
  shown_ = false;
}

}  // namespace replay
