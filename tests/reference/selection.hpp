// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <flashmemory/select/policy.hpp>
#include <vector>

/// The selection policy written down once more, as plainly and slowly as it can be.
namespace reference {

struct plan {
  std::vector<flashmemory::chunk_id> kept;
  std::int64_t candidates = 0, above = 0, above_dropped = 0, nan_scores = 0;
};

/// Better first: numbers before NaN, higher before lower, newer before older.
inline bool better(const std::vector<float>& scores, std::int64_t a, std::int64_t b) {
  const float x = scores[std::size_t(a)], y = scores[std::size_t(b)];
  if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
  if (!std::isnan(x) && x != y) return x > y;
  return a > b;
}

inline plan select(const flashmemory::selection_policy& policy, const std::vector<float>& scores,
                   const std::vector<std::uint8_t>& resident, std::int64_t budget) {
  using flashmemory::selection_mode;
  plan p;
  const auto n = static_cast<std::int64_t>(scores.size());
  std::vector<std::int64_t> candidates;
  for (std::int64_t c = 0; c < n; ++c) {
    if (c < policy.sink_chunks || c >= n - policy.recent_chunks)
      p.kept.push_back(static_cast<flashmemory::chunk_id>(c));
    else
      candidates.push_back(c);
  }
  p.candidates = static_cast<std::int64_t>(candidates.size());
  if (policy.mode == selection_mode::everything) {
    for (auto c = candidates.rbegin(); c != candidates.rend(); ++c)
      p.kept.push_back(static_cast<flashmemory::chunk_id>(*c));
    return p;
  }

  std::sort(candidates.begin(), candidates.end(),
            [&](std::int64_t a, std::int64_t b) { return better(scores, a, b); });
  std::vector<std::int64_t> passing, failing, chosen;
  for (const std::int64_t c : candidates) {
    const float score = scores[std::size_t(c)];
    const bool stays =
        !resident.empty() && resident[std::size_t(c)] && score > policy.threshold - policy.hysteresis;
    (score > policy.threshold || stays ? passing : failing).push_back(c);
    if (std::isnan(score)) ++p.nan_scores;
  }
  const auto room = [&] { return static_cast<std::int64_t>(p.kept.size() + chosen.size()) < budget; };
  if (policy.mode == selection_mode::budget) {
    for (const std::int64_t c : candidates)
      if (room()) chosen.push_back(c);
  } else {
    for (const std::int64_t c : passing)
      if (room()) chosen.push_back(c);
    for (const std::int64_t c : failing)
      if (room() && static_cast<std::int64_t>(p.kept.size() + chosen.size()) < policy.min_chunks)
        chosen.push_back(c);
    std::sort(chosen.begin(), chosen.end(),
              [&](std::int64_t a, std::int64_t b) { return better(scores, a, b); });
  }
  p.above = static_cast<std::int64_t>(passing.size());
  for (const std::int64_t c : passing)
    if (std::find(chosen.begin(), chosen.end(), c) == chosen.end()) ++p.above_dropped;
  for (const std::int64_t c : chosen) p.kept.push_back(static_cast<flashmemory::chunk_id>(c));
  return p;
}

/// Rounds half to even.
inline std::int64_t round_even(double x) {
  const double low = std::floor(x);
  if (x - low < 0.5) return static_cast<std::int64_t>(low);
  if (x - low > 0.5) return static_cast<std::int64_t>(low) + 1;
  return static_cast<std::int64_t>(low) + (static_cast<std::int64_t>(low) % 2 != 0);
}

}  // namespace reference
