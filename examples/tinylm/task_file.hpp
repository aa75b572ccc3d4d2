// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tinylm {

/// Where an item of the gold answer comes from. Token ranges, the ends excluded; prompt positions count the
/// beginning-of-sequence token.
struct evidence {
  std::int64_t answer_begin = 0;
  std::int64_t answer_end = 0;
  std::int64_t prompt_begin = 0;
  std::int64_t prompt_end = 0;
};

/// One prompt with the answers that it asks for: a line of a task file.
struct task_record {
  std::string id;
  std::string task;
  std::int64_t length = 0;         ///< context length it was made for
  std::int64_t prompt_tokens = 0;  ///< beginning-of-sequence token included; 0 = not stated
  std::int64_t max_new_tokens = 64;
  std::string prompt;
  std::vector<std::string> answers;
  std::vector<evidence> need;  ///< one per answer, in their order; empty where a file does not say
};

/// Reads a JSONL task file. \throws std::runtime_error naming file and line
std::vector<task_record> read_tasks(const std::string& path);

}  // namespace tinylm
