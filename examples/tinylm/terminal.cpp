// SPDX-License-Identifier: MIT
#include "terminal.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace tinylm {

std::string style::wrap(const char* code, std::string_view text) const {
  return enabled_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

bool stdout_is_terminal() noexcept { return isatty(STDOUT_FILENO) != 0; }
bool stderr_is_terminal() noexcept { return isatty(STDERR_FILENO) != 0; }
style stdout_style() { return style(stdout_is_terminal() && std::getenv("NO_COLOR") == nullptr); }

std::string bytes_text(double bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 999.5 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  const int decimals = unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}", bytes, decimals, units[unit]);
}

std::string duration_text(double seconds) {
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const auto whole = std::llround(seconds);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string bar_text(double fraction, int width) {
  const int full = static_cast<int>(std::lround(std::clamp(fraction, 0.0, 1.0) * width));
  return fmt::format("[{:#<{}}{:.<{}}]", "", full, "", width - full);
}

progress_line::progress_line(std::string title, bool asked_for)
    : title_(std::move(title)), terminal_(stderr_is_terminal()), enabled_(asked_for || terminal_) {}

progress_line::~progress_line() { clear(); }

void progress_line::update(std::int64_t done, std::int64_t total, std::string_view note) {
  if (!enabled_ || total <= 0) return;
  const double fraction = static_cast<double>(done) / static_cast<double>(total);
  const auto now = steady::now();
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  if (terminal_) {
    if (shown_ && done < total && now - last_ < std::chrono::milliseconds(60)) return;
    last_ = now;
    shown_ = true;
    const std::string rest = fraction > 0.02 && fraction < 1
                                 ? fmt::format("  {} left", duration_text(elapsed / fraction - elapsed))
                                 : "";
    fmt::print(stderr, "\r\x1b[K{} {} {:3.0f}%  {}{}{}{}", title_, bar_text(fraction, 32), 100 * fraction,
               duration_text(elapsed), rest, note.empty() ? "" : "  ", note);
  } else {
    const int tenths = static_cast<int>(10 * fraction);
    if (tenths == tenths_) return;
    tenths_ = tenths;
    fmt::print(stderr, "{} {:3}%  {}{}{}\n", title_, 10 * tenths, duration_text(elapsed),
               note.empty() ? "" : "  ", note);
  }
  std::fflush(stderr);
}

void progress_line::clear() {
  if (terminal_ && shown_) {
    fmt::print(stderr, "\r\x1b[K");
    std::fflush(stderr);
  }
  shown_ = false;
}

}  // namespace tinylm
