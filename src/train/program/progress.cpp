// SPDX-License-Identifier: MIT
#include "src/train/program/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace indexer_program {

progress_bar::progress_bar() : terminal_(::isatty(STDERR_FILENO) == 1) {}

progress_bar::~progress_bar() {
  if (open_) std::fputc('\n', stderr);
}

void progress_bar::note(const std::string& text) {
  fmt::print(stderr, "{}{}{}\n", terminal_ ? "\r" : "", text, terminal_ ? "\033[K" : "");
}

void progress_bar::show(const flashmemory::train::step_report& r) {
  loss_ += r.loss;
  recall_ += r.recall;
  kept_ += r.kept;
  seconds_ += r.seconds;
  gflop_ += r.gflops * r.seconds;
  ++steps_;
  const int every = terminal_ ? 5 : 50;
  if (steps_ < every && r.step != r.steps) return;
  left_ = seconds_ / steps_ * static_cast<double>(r.steps - r.step);
  constexpr int width = 24;
  const int full = static_cast<int>(width * r.step / r.steps);
  const std::string line = fmt::format(
      "[{}{}] {}/{} {} loss {:.4f} recall@10% {:.3f} kept {:.2f}% rate {:.1e} {:.0f} Gflop/s {:.0f} s left",
      std::string(static_cast<std::size_t>(full), '='),
      std::string(static_cast<std::size_t>(width - full), ' '), r.step, r.steps,
      r.ensemble ? "ensemble" : "layers", loss_ / steps_, recall_ / steps_, 100 * kept_ / steps_, r.rate,
      gflop_ / seconds_, left_);
  fmt::print(stderr, "{}{}{}", terminal_ ? "\r" : "", line, terminal_ ? "\033[K" : "\n");
  std::fflush(stderr);
  open_ = terminal_;
  loss_ = recall_ = kept_ = seconds_ = gflop_ = 0;
  steps_ = 0;
}

}  // namespace indexer_program
