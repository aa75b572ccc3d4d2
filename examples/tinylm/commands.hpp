// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace tinylm {

/// Exit code of a command that ran but whose answer is "no", e.g. a check that failed.
struct command_failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Each adds one subcommand with its options and a callback that runs it. Callbacks throw to fail.
void add_ask_command(CLI::App& app);
void add_check_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_record_command(CLI::App& app);  ///< where flashmemory::train is there
void add_tasks_command(CLI::App& app);

/// Where the shipped data lies unless --data says otherwise: the folder beside the sources.
std::string default_data_folder();

}  // namespace tinylm
