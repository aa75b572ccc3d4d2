// SPDX-License-Identifier: MIT
#include "policy_cell.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace tinylm {

namespace fm = flashmemory;

std::string policy_cell::label() const {
  if (threshold > 0)
    return hysteresis > 0 ? fmt::format("{} {:g}-{:g}", name, threshold, hysteresis)
                          : fmt::format("{} {:g}", name, threshold);
  return budget > 0 ? fmt::format("{} {:g}%", name, 100 * budget) : name;
}

policy_cell make_cell(const std::string& name, double limit, const always_kept& kept, double hysteresis) {
  policy_cell cell;
  cell.name = name;
  cell.policy.interval = kept.interval;
  cell.policy.sink_chunks = kept.sink;
  cell.policy.recent_chunks = kept.recent;
  if (name == "full") {
    cell.policy.mode = fm::selection_mode::everything;
  } else if (name == "lsa-threshold") {
    cell.policy.mode = fm::selection_mode::threshold;
    cell.threshold = limit;
    cell.policy.threshold = fm::log_odds(limit);
    cell.hysteresis = hysteresis;
    cell.policy.hysteresis = static_cast<float>(hysteresis);
    cell.policy.budget_fraction = 0;
  } else if (name == "lsa" || name == "recency" || name == "random" || name == "quest" || name == "oracle") {
    cell.policy.mode = fm::selection_mode::budget;
    cell.policy.budget_fraction = cell.budget = limit;
  } else {
    throw std::invalid_argument(fmt::format(
        "there is no policy \"{}\"; there are full, lsa, lsa-threshold, recency, random, quest and oracle",
        name));
  }
  return cell;
}

std::vector<policy_cell> make_cells(const std::vector<std::string>& names, const cell_limits& limits,
                                    const always_kept& kept) {
  std::vector<policy_cell> cells;
  for (const auto& name : names) {
    if (name == "full") {
      cells.push_back(make_cell(name, 0, kept));
      continue;
    }
    if (name == "lsa-threshold") {
      for (const double hysteresis : limits.hystereses)
        for (const double limit : limits.thresholds)
          cells.push_back(make_cell(name, limit, kept, hysteresis));
      continue;
    }
    for (const double limit : limits.budgets) cells.push_back(make_cell(name, limit, kept));
  }
  return cells;
}

}  // namespace tinylm
