// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <string>

#include "measure.hpp"

namespace replay {

/// A bar on stderr that is written over while work goes on; on anything but a terminal, a line per stage if asked for.
class progress_bar final : public progress_sink {
 public:
  explicit progress_bar(bool asked_for);
  ~progress_bar() override { clear(); }

  /// What all that follows belongs to.
  void title(std::string text);
  void update(const char* what, std::int64_t done, std::int64_t total) override;
  /// Removes the bar from a terminal.
  void clear();

 private:
  using steady = std::chrono::steady_clock;
  bool terminal_, enabled_;
  bool shown_ = false;
  std::string title_, stage_;
  steady::time_point start_ = steady::now(), last_;
};

}  // namespace replay
