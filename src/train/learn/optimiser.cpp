// SPDX-License-Identifier: MIT
#include "src/train/learn/optimiser.hpp"

#include <algorithm>
#include <cmath>

#include "src/train/learn/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

double rate_at(const optimiser_options& o, std::int64_t step, std::int64_t steps) noexcept {
  const double warm =
      o.warm_up > 0 ? std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(o.warm_up)) : 1;
  const double done = steps > 1 ? static_cast<double>(step) / static_cast<double>(steps - 1) : 0;
  double share = 1;
  if (o.schedule == rate_schedule::linear) share = 1 - done;
  if (o.schedule == rate_schedule::cosine) share = 0.5 + 0.5 * std::cos(3.14159265358979323846 * done);
  return o.rate * warm * (o.final_rate + (1 - o.final_rate) * share);
}

double adamw_state::update(const optimiser_options& o, const parameter_map& map, double rate,
                           const std::vector<float>& gradient, std::vector<float>& parameters) {
  double squares = 0;
  for (const float g : gradient) squares += static_cast<double>(g) * static_cast<double>(g);
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) return norm;
  m.resize(parameters.size());
  v.resize(parameters.size());
  ++updates;
  adamw_step step;
  step.rate = static_cast<float>(rate);
  step.beta1 = static_cast<float>(o.beta1);
  step.beta2 = static_cast<float>(o.beta2);
  step.eps = static_cast<float>(o.eps);
  step.correction1 = static_cast<float>(1 - std::pow(o.beta1, static_cast<double>(updates)));
  step.correction2 = static_cast<float>(1 - std::pow(o.beta2, static_cast<double>(updates)));
  const auto retrievers = static_cast<std::int64_t>(parameters.size()) / map.count;
  const double limit = o.clip * static_cast<double>(retrievers);
  step.gradient_scale = static_cast<float>(o.clip > 0 && norm > limit ? limit / norm : 1.0);
  for (std::int64_t r = 0; r < retrievers; ++r) {
    const auto part = [&](std::int64_t first, std::int64_t end, double decay) {
      step.decay = static_cast<float>(decay);
      const std::int64_t at = r * map.count + first;
      adamw(step, end - first, gradient.data() + at, parameters.data() + at, m.data() + at, v.data() + at);
    };
    part(0, map.q_norm, o.decay);
    part(map.q_norm, map.count, 0);
  }
  return norm;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
