// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/learn/backend.hpp>
#include <flashmemory/train/learn/trainer.hpp>
#include <memory>
#include <string>
#include <vector>

#include "src/train/learn/examples.hpp"
#include "src/train/learn/loss.hpp"
#include "src/train/learn/model.hpp"
#include "src/train/learn/optimiser.hpp"
#include "src/train/learn/sampler.hpp"
#include "src/train/record/random.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {

struct trainer::impl {
  impl(const document_source& from, const dual_encoder_config& start, trainer_options o);

  std::int64_t steps() const noexcept { return options.layer_steps + options.ensemble_steps; }

  /// Adds one document's loss and gradient; counts into `report`.
  void learn(const std::shared_ptr<const detail::example>& source_of,
             const std::vector<std::int64_t>& windows, bool ensemble, std::uint64_t seed,
             step_report& report);
  void count(const std::vector<detail::target>& targets, const float* combined);

  const document_source& source;
  trainer_options options;
  detail::dual_model model;  // as it was at the start
  std::unique_ptr<training_backend> backend;
  detail::example_store examples;
  detail::sampler documents;
  std::int64_t step = 0;  // made so far

  std::vector<float> scores, d_scores;  // [retrievers, chunks, windows]
  std::vector<float> best, d_best;      // [chunks, windows]
  double flop = 0;
  std::int64_t recalled = 0, positives = 0, kept = 0, candidates = 0;
};

namespace detail {

/// Everything that decides what a run computes, as JSON.
std::string describe_run(const trainer_options& options, const dual_encoder_config& architecture);

}  // namespace detail

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
