// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "eval_report.hpp"

namespace tinylm {

/// What stands at the head of a report.
struct report_facts {
  std::string title;
  std::vector<std::string> lines;  ///< settings, one sentence each
  std::int64_t tokens_per_chunk = 64;
};

/// One HTML page that needs nothing else, neither files nor scripts: accuracy against the share of the KV in the fast
/// tier for every policy, the tables behind it, and for one prompt of each length and task a map of what was resident
/// at every step, with the chunks that hold the answers marked, and the time of every step.
std::string html_report(const report_facts& facts, const std::vector<eval_result>& results,
                        const std::vector<eval_summary>& summaries, const std::vector<policy_cell>& cells);

}  // namespace tinylm
