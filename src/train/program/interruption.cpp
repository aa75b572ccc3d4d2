// SPDX-License-Identifier: MIT
#include "src/train/program/interruption.hpp"

#include <signal.h>

#include <initializer_list>

namespace indexer_program {
namespace {

volatile sig_atomic_t received = 0;

void handle(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

}  // namespace

interruption::interruption() {
  received = 0;
  handle([](int signal) { received = signal; });
}

interruption::~interruption() { handle(SIG_DFL); }

bool interruption::asked() const noexcept { return received != 0; }

int interruption::exit_code() const noexcept { return 128 + static_cast<int>(received); }

}  // namespace indexer_program
