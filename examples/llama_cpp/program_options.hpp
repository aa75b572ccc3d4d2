// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "runner.hpp"

namespace llama_flashmemory {

/// Options that all commands share.
struct program_options {
  std::string model;
  std::string policy = "lsa";
  double budget = 0.135;
  std::int32_t interval = 16;
  std::int32_t recent = 2;
  std::string indexer;
  std::int32_t threads = 2;
  std::int64_t context = 0;  ///< 0 = what the model was trained for
  std::int32_t ubatch = 512;
  std::string cache = "f16";
  std::string backing;
  bool any_version = false;
  bool self_test = false;

  /// What runners are made with; `policy` in place of the option's where it is not empty.
  /// \throws std::runtime_error for a context that is longer than the model's
  runner_options runners(const text_model& loaded, const std::string& policy_name = {}) const;
};

/// Adds them to a command.
void add_shared_options(CLI::App& command, program_options& options);

/// Tells OpenMP, which llama.cpp and flashmemory both use, how many threads there are.
flashmemory::thread_hook use_threads(std::int32_t threads);

/// Each adds one command with its options and a callback that runs it. Callbacks throw to fail.
void add_chat_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_check_command(CLI::App& app);
void add_widen_command(CLI::App& app);

/// Exit code of a command that ran but whose answer is "no".
struct command_failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace llama_flashmemory
