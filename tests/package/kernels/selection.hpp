// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace engine {

// Throw if a kernel's result is not what the host works out.

/// Top-k over rows of a matrix, translated to pages.
void pages_of_the_best_scores(std::uint32_t seed);
/// Gather by two lists of page numbers.
void copies_between_page_pools(std::uint32_t seed);
/// Scoring with a bias by recency, on whatever kernels the device has.
void scores_with_a_bias(std::uint32_t seed);

}  // namespace engine
