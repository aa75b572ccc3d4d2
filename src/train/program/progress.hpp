// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/train/learn/trainer.hpp>
#include <string>

namespace indexer_program {

/// One line on stderr that moves on a terminal, and a line now and then where stderr is a file.
class progress_bar {
 public:
  progress_bar();
  ~progress_bar();
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;
  /// A line of its own.
  void note(const std::string& text);
  void show(const flashmemory::train::step_report& report);

 private:
  bool terminal_;
  bool open_ = false;
  double loss_ = 0, recall_ = 0, kept_ = 0, seconds_ = 0, gflop_ = 0;  // sums since the last line
  int steps_ = 0;
  double left_ = 0;
};

}  // namespace indexer_program
