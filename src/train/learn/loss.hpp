// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/parallel.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/learn/loss.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// One window of a batch: what it needs, and how much it counts.
struct target {
  const window_labels* labels = nullptr;
  double weight = 1;
};

/// The loss of a batch of windows over one document, and its gradient.
/// \param[in]  scores    [chunks, windows]
/// \param      seed      of the negatives that are drawn
/// \param[out] d_scores  [chunks, windows], overwritten; 0 outside the windows' candidates
/// \param      threads   take a window at a time; results do not depend on them
template <class Real>
double loss_and_gradient(const loss_options& options, std::int64_t chunks, const std::vector<target>& targets,
                         const Real* scores, std::uint64_t seed, Real* d_scores,
                         const thread_hook& threads = serial_threads());

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
