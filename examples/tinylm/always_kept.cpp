// SPDX-License-Identifier: MIT
#include "always_kept.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <flashmemory/io/safetensors.hpp>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace tinylm {

namespace fm = flashmemory;

always_kept kept_by(const std::string& indexer_path) {
  const fm::safetensors_file file(indexer_path);
  always_kept kept;
  const auto found = file.metadata().find("training");
  if (found == file.metadata().end()) return kept;
  try {
    const auto record = nlohmann::json::parse(found->second);
    record.at("tau").get_to(kept.interval);
    record.at("sink_chunks").get_to(kept.sink);
    record.at("recent_chunks").get_to(kept.recent);
  } catch (const nlohmann::json::exception&) {
    throw std::runtime_error(fmt::format("{}: what it was trained for cannot be read", indexer_path));
  }
  if (kept.interval < 1 || kept.sink < 0 || kept.recent < 0)
    throw std::runtime_error(fmt::format("{}: trained for an interval of {}, {} sink and {} recent chunks",
                                         indexer_path, kept.interval, kept.sink, kept.recent));
  return kept;
}

fm::selection_policy fitted(fm::selection_policy policy, std::int64_t complete_chunks) {
  if (policy.mode != fm::selection_mode::budget || policy.budget_fraction <= 0) return policy;
  const auto budget = static_cast<std::int64_t>(
      std::nearbyint(policy.budget_fraction * static_cast<double>(complete_chunks)));
  const std::int64_t room = budget - (budget + 1) / 2 - policy.sink_chunks;
  if (policy.recent_chunks > room)
    policy.recent_chunks =
        std::min(policy.recent_chunks, static_cast<std::int32_t>(std::max<std::int64_t>(room, 2)));
  return policy;
}

}  // namespace tinylm
