// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace tinylm {

/// ANSI styles; nothing where the output is not a terminal or NO_COLOR is set.
class style {
 public:
  explicit style(bool enabled) noexcept : enabled_(enabled) {}

  std::string bold(std::string_view text) const { return wrap("1", text); }
  std::string dim(std::string_view text) const { return wrap("2", text); }
  std::string good(std::string_view text) const { return wrap("32", text); }
  std::string bad(std::string_view text) const { return wrap("31", text); }
  std::string accent(std::string_view text) const { return wrap("36", text); }

 private:
  std::string wrap(const char* code, std::string_view text) const;
  bool enabled_;
};

bool stdout_is_terminal() noexcept;
bool stderr_is_terminal() noexcept;
style stdout_style();

/// "8.61 MB": decimal units, three digits.
std::string bytes_text(double bytes);

/// "1:05" or "12.3 s".
std::string duration_text(double seconds);

/// "[#####.....]", `width` characters between the brackets.
std::string bar_text(double fraction, int width);

/// A line on stderr that is written over as work goes on. On a terminal it is updated in place; else, if it
/// was asked for, a line is written at every tenth.
class progress_line {
 public:
  progress_line(std::string title, bool asked_for);
  ~progress_line();

  void update(std::int64_t done, std::int64_t total, std::string_view note = {});

  /// Removes the line from a terminal.
  void clear();

 private:
  using steady = std::chrono::steady_clock;
  std::string title_;
  bool terminal_;
  bool enabled_;
  bool shown_ = false;
  int tenths_ = -1;
  steady::time_point start_ = steady::now();
  steady::time_point last_;
};

}  // namespace tinylm
