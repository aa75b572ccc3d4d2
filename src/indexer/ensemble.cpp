// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/indexer/dual_encoder_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

// log(mean p / (1 - mean p)) with p = sigmoid(z). Up to 40 both sums are at least e^-40 and can be taken as
// they are. Beyond it sigmoid(z) is e^z (or 1 - e^-z) to the last bit, and the largest term is factored out.
float mean_log_odds(const float* z, std::int32_t count, std::int64_t stride) noexcept {
  constexpr float far = 40;
  float smallest = z[0];
  float largest = z[0];
  for (std::int32_t i = 1; i < count; ++i) {
    smallest = std::min(smallest, z[i * stride]);
    largest = std::max(largest, z[i * stride]);
  }
  const auto log_mean_exp = [&](float sign, float reference) {
    float sum = 0;
    for (std::int32_t i = 0; i < count; ++i) sum += std::exp(sign * (z[i * stride] - reference));
    return std::log(sum / static_cast<float>(count));
  };
  if (largest < -far) return std::isinf(largest) ? largest : largest + log_mean_exp(1, largest);
  if (smallest > far) return std::isinf(smallest) ? smallest : smallest - log_mean_exp(-1, smallest);
  float yes = 0;
  float no = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const float e = std::exp(-std::fabs(z[i * stride]));
    const float near = 1 / (1 + e);
    yes += z[i * stride] > 0 ? near : e * near;
    no += z[i * stride] > 0 ? e * near : near;
  }
  return std::log(yes / no);
}

}  // namespace

float combine_logits(ensemble how, const float* z, std::int32_t count, std::int64_t stride) noexcept {
  if (count == 1) return z[0];
  float largest = z[0];
  for (std::int32_t i = 0; i < count; ++i) {
    if (std::isnan(z[i * stride])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, z[i * stride]);
  }
  return how == ensemble::max ? largest : mean_log_odds(z, count, stride);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
