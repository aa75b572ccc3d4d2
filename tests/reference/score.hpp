// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/reference/indexer.hpp"

/// The paged scorer and exact top-k, one loop per line of the formula.
namespace flashmemory::reference {

struct scored_key {
  double logit = 0;
  double magnitude = 0;  ///< the same sum over absolute values, for tolerances
};

/// \param queries [heads, 128] e4m3
/// \param key     [128] e4m3
inline scored_key score_key(const std::vector<std::uint8_t>& queries, const std::vector<float>& weights,
                            const std::uint8_t* key, float scale, float offset) {
  static const std::vector<double> values = [] {
    std::vector<double> table;
    for (int bits = 0; bits < 256; ++bits) table.push_back(e4m3_value(static_cast<std::uint8_t>(bits)));
    return table;
  }();
  scored_key result;
  double sum = 0;
  for (std::size_t h = 0; h < weights.size(); ++h) {
    double dot = 0;
    double size = 0;
    for (std::size_t d = 0; d < 128; ++d) {
      const double product = values[queries[h * 128 + d]] * values[key[d]];
      dot += product;
      size += std::fabs(product);
    }
    dot *= scale < 0 ? -1 : 1;
    sum += static_cast<double>(weights[h]) * (dot < 0 ? 0 : dot);
    result.magnitude +=
        std::fabs(static_cast<double>(weights[h])) * size * std::fabs(static_cast<double>(scale));
  }
  result.logit = sum * std::fabs(static_cast<double>(scale)) + static_cast<double>(offset);
  if (!std::isfinite(scale)) result.logit = std::numeric_limits<double>::quiet_NaN();
  return result;
}

/// Ids of the k largest, ascending: of equal ones the higher id first, NaN after everything.
inline std::vector<std::int32_t> top_k(const std::vector<float>& scores, std::size_t k) {
  std::vector<std::int32_t> ids(scores.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
    const float x = scores[static_cast<std::size_t>(a)];
    const float y = scores[static_cast<std::size_t>(b)];
    if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
    if (!std::isnan(x) && (x > y || x < y)) return x > y;
    return a > b;
  });
  ids.resize(std::min(k, ids.size()));
  std::sort(ids.begin(), ids.end());
  return ids;
}

/// Ids of scores > threshold, ascending.
inline std::vector<std::int32_t> above(const std::vector<float>& scores, float threshold) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > threshold) ids.push_back(static_cast<std::int32_t>(i));
  }
  return ids;
}

/// Largest of each `group` consecutive scores. A NaN is either passed over, and wins only where there is
/// nothing else, or wins over everything.
inline std::vector<float> group_maxima(const std::vector<float>& scores, std::size_t group, bool nan_wins) {
  std::vector<float> maxima;
  for (std::size_t first = 0; first < scores.size(); first += group) {
    float best = std::numeric_limits<float>::quiet_NaN();
    bool nan = false;
    for (std::size_t i = first; i < std::min(first + group, scores.size()); ++i) {
      nan = nan || std::isnan(scores[i]);
      if (std::isnan(best) || scores[i] > best) best = scores[i];
    }
    maxima.push_back(nan && nan_wins ? std::numeric_limits<float>::quiet_NaN() : best);
  }
  return maxima;
}

}  // namespace flashmemory::reference
