// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "policy_cell.hpp"
#include "run_record.hpp"
#include "scoring.hpp"
#include "task_file.hpp"

namespace tinylm {

/// One prompt under one policy.
struct eval_result {
  const task_record* task = nullptr;
  const policy_cell* cell = nullptr;
  score answer;
  run_record run;
};

/// Means over the results of one policy, e.g. of one task and length.
struct eval_summary {
  std::string task;         ///< "all" for all of them
  std::int64_t length = 0;  ///< 0 for all
  const policy_cell* cell = nullptr;
  std::int64_t prompts = 0;
  double accuracy = 0;       ///< mean share of the expected answers
  double all_right = 0;      ///< share of prompts with all of them
  double mean_fraction = 0;  ///< fast-tier bytes over those of the fully resident K and V
  double peak_fraction = 0;
  double mean_bytes = 0;
  double peak_bytes = 0;
  double kept = 0;  ///< complete chunks that stayed, mean over refreshes and prompts
  double tokens_per_second = 0;
  double step_p50 = 0;  ///< seconds
  double step_p99 = 0;
  double attention_share = 0;  ///< of the step's time
  double rest_p50 = 0;         ///< seconds of a step outside sparse_attend()
};

/// By length and task, then over all tasks of a length, then over everything; in the cells' order.
std::vector<eval_summary> summarise(const std::vector<eval_result>& results,
                                    const std::vector<policy_cell>& cells);

/// The table on stdout, which ends with one line per policy.
void print_table(const std::vector<eval_summary>& summaries);

nlohmann::json to_json(const eval_summary& summary);
nlohmann::json to_json(const eval_result& result);

}  // namespace tinylm
