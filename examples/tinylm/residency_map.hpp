// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval_report.hpp"

namespace tinylm {

/// Consecutive tokens generated under one resident set.
struct residency_span {
  std::int64_t first = 0;            ///< generated token
  std::int64_t end = 0;              ///< one past the last
  std::vector<std::int64_t> chunks;  ///< resident, ascending; those completed since and the open one included
};

/// What was resident while each token of the answer was generated. The token numbered i is what the step at position
/// prompt_tokens + i - 1 predicts.
std::vector<residency_span> residency_spans(const run_record& run, std::int64_t prompt_tokens,
                                            std::int64_t tokens_per_chunk);

/// Answers of which every needed chunk was resident during all of their tokens.
std::int64_t covered_answers(const std::vector<residency_span>& spans, const std::vector<evidence>& need,
                             std::int64_t tokens_per_chunk);

/// A drawing of chunk x generated token, with the chunks that hold answers boxed.
std::string residency_map(const eval_result& result, std::int64_t tokens_per_chunk);

}  // namespace tinylm
