// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/flashmemory.hpp>
#include <string>
#include <vector>

#include "always_kept.hpp"

namespace tinylm {

/// One row of a comparison: who ranks chunks, and how much may stay.
struct policy_cell {
  std::string name;       ///< full, lsa, lsa-threshold, recency, random, quest or oracle
  double budget = 0;      ///< fraction of the complete chunks; 0 where the policy has no such limit
  double threshold = 0;   ///< probability above which a chunk stays; 0 where the policy has none
  double hysteresis = 0;  ///< log-odds below the threshold down to which a chunk stays that was there before
  flashmemory::selection_policy policy;

  bool full() const noexcept { return name == "full"; }
  std::string label() const;  ///< e.g. "lsa 13.5%", "lsa-threshold 0.5" or "lsa-threshold 0.65-1"
};

/// What the policies of a comparison are limited by; each takes what it knows.
struct cell_limits {
  std::vector<double> budgets{0.135};   ///< fractions of the complete chunks
  std::vector<double> thresholds{0.5};  ///< probabilities, for lsa-threshold
  std::vector<double> hystereses{0};    ///< log-odds, for lsa-threshold: each with each threshold
};

/// \param limit  budget or threshold, as the policy has it
/// \param kept   the interval, and what stays anyway
/// \param hysteresis  for lsa-threshold
/// \throws std::invalid_argument for a name that is not one of the above
policy_cell make_cell(const std::string& name, double limit, const always_kept& kept = {},
                      double hysteresis = 0);

/// Every policy with every limit of its kind, `full` once.
std::vector<policy_cell> make_cells(const std::vector<std::string>& names, const cell_limits& limits,
                                    const always_kept& kept = {});

}  // namespace tinylm
