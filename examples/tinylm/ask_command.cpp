// SPDX-License-Identifier: MIT
#include "commands.hpp"
namespace tinylm {
void add_ask_command(CLI::App&) {}
}  // namespace tinylm
