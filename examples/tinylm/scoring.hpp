// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tinylm {

struct score {
  int found = 0;  ///< expected answers that appear
  int expected = 0;

  double fraction() const noexcept { return expected == 0 ? 0.0 : static_cast<double>(found) / expected; }
  bool all() const noexcept { return expected > 0 && found == expected; }
};

/// Runs of five or more digits in the first line.
std::vector<std::string> numbers_in(std::string_view text);

/// How many of the expected numbers the first line of `text` holds, in any order.
score score_answer(std::string_view text, const std::vector<std::string>& answers);

}  // namespace tinylm
