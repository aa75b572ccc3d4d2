// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/learn/trainer.hpp>
#include <vector>

#include "src/train/learn/encoder.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Learning rate at `step` of a stage of `steps`: warm-up from 1 / warm_up, then the schedule.
double rate_at(const optimiser_options& options, std::int64_t step, std::int64_t steps) noexcept;

/// Moments of AdamW for all retrievers' parameters.
struct adamw_state {
  std::vector<float> m;
  std::vector<float> v;
  std::int64_t updates = 0;

  /// \returns the norm of the gradient before it was clipped; not finite: nothing was changed
  double update(const optimiser_options& options, const parameter_map& map, double rate,
                const std::vector<float>& gradient, std::vector<float>& parameters);
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
