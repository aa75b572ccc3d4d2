// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "measure.hpp"

namespace replay {

/// Both modes at one context length.
struct comparison {
  mode_result all_resident, flashmemory;
};

/// What the figures depend on.
struct circumstances {
  std::string device;
  double read_bytes_per_second = 0;  ///< of the device's memory, measured in this process
  double copy_bytes_per_second = 0;  ///< pinned host to device
  std::size_t gpu_bytes = 0;         ///< the budget that sequences are counted in
  std::int32_t interval = 0;
  double budget_fraction = 0, drift = 0;
};

/// A table for people.
std::string table_text(const std::vector<comparison>& results, const circumstances& about);

/// Everything measured.
std::string json_text(const std::vector<comparison>& results, const circumstances& about);

}  // namespace replay
