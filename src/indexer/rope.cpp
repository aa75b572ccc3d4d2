// SPDX-License-Identifier: MIT
#include "src/indexer/rope.hpp"

#include <algorithm>
#include <cmath>

namespace flashmemory {
inline namespace v0 {
namespace detail {

rope_frequencies yarn_frequencies(const rope_options& options) noexcept {
  constexpr double pi = 3.14159265358979323846;
  constexpr double dim = rope_dim;
  const double log_base = std::log(options.base);
  // The pair that turns `rotations` times within the original length.
  const auto pair_of = [&](double rotations) {
    return dim * std::log(static_cast<double>(options.original_length) / (2 * pi * rotations)) /
           (2 * log_base);
  };
  const double low = std::max(std::floor(pair_of(options.beta_fast)), 0.0);
  const double high = std::min(std::ceil(pair_of(options.beta_slow)), dim / 2 - 1);
  // From here on in float, step by step as the published scorer does it: at position 500000 one ulp of a
  // frequency turns a query by a hundredth of a radian. Compiled without contraction to FMA for that reason.
  rope_frequencies frequencies;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rope_dim);
    const float frequency = 1.0f / static_cast<float>(std::pow(options.base, static_cast<double>(exponent)));
    // A ramp of no width is a step.
    const float width = std::max(static_cast<float>(high) - static_cast<float>(low), 0.001f);
    const float ramp = std::clamp((static_cast<float>(i) - static_cast<float>(low)) / width, 0.0f, 1.0f);
    const float kept = 1.0f - ramp;
    const float stretched = frequency / static_cast<float>(options.factor) * (1.0f - kept);
    frequencies[i] = stretched + frequency * kept;
  }
  return frequencies;
}

rope_rotation rotation_at(const rope_frequencies& frequencies, std::int64_t position,
                          std::int64_t max_positions) noexcept {
  const float p = static_cast<float>(std::clamp<std::int64_t>(position, 0, max_positions - 1));
  rope_rotation rotation;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    // The product is rounded to float on purpose: the model's keys were turned by the same rounded angles.
    const float angle = p * frequencies[i];
    rotation.cosine[i] = std::cos(angle);
    rotation.sine[i] = std::sin(angle);
  }
  return rotation;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
