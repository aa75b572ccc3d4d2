// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/flashmemory.hpp>
#include <string>
#include <vector>

#include "always_kept.hpp"

namespace tinylm {

/// One row of a comparison: who ranks chunks, and how much may stay.
struct policy_cell {
  std::string name;   ///< full, lsa, lsa-threshold, recency, random, quest or oracle
  double budget = 0;  ///< fraction of the complete chunks; 0 where the policy has no such limit
  flashmemory::selection_policy policy;

  bool full() const noexcept { return name == "full"; }
  std::string label() const;  ///< e.g. "lsa 13.5%"
};

/// \param kept  the interval, and what stays anyway
/// \throws std::invalid_argument for a name that is not one of the above
policy_cell make_cell(const std::string& name, double budget, const always_kept& kept = {});

/// Every policy with every budget, those without a budget once.
std::vector<policy_cell> make_cells(const std::vector<std::string>& names, const std::vector<double>& budgets,
                                    const always_kept& kept = {});

}  // namespace tinylm
