// SPDX-License-Identifier: MIT
#include "run_record.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tinylm {

double run_record::seconds() const noexcept {
  return std::accumulate(step_seconds.begin(), step_seconds.end(), 0.0);
}

double run_record::mean_fraction() const noexcept {
  double sum = 0;
  for (const auto& f : footprints) sum += f.fraction();
  return footprints.empty() ? 0.0 : sum / static_cast<double>(footprints.size());
}

double run_record::mean_bytes() const noexcept {
  double sum = 0;
  for (const auto& f : footprints) sum += static_cast<double>(f.total());
  return footprints.empty() ? 0.0 : sum / static_cast<double>(footprints.size());
}

std::size_t run_record::peak_bytes() const noexcept {
  std::size_t peak = 0;
  for (const auto& f : footprints) peak = std::max(peak, f.total());
  return peak;
}

double run_record::peak_fraction() const noexcept {
  double peak = 0;
  for (const auto& f : footprints) peak = std::max(peak, f.fraction());
  return peak;
}

double run_record::kept_fraction() const noexcept {
  double sum = 0;
  for (const auto& r : refreshes) sum += r.kept_fraction();
  return refreshes.empty() ? 1.0 : sum / static_cast<double>(refreshes.size());
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size())));
  return values[std::clamp<std::size_t>(rank, 1, values.size()) - 1];
}

}  // namespace tinylm
