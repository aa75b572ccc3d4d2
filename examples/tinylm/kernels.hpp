// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/dtype.hpp>

namespace tinylm {

/// The engine's inner loops, compiled for several instruction sets; the best one of this CPU runs.

/// Widths of rows that dot products and sums run over must be multiples of this.
inline constexpr std::int64_t row_granule = 32;

/// Most tokens that project() takes at once.
inline constexpr std::int32_t max_step_tokens = 8;

/// y[t, r] = sum over c of weights[r, c] * x[t, c], for rows [first, last). A sum's order of additions does
/// not depend on how many tokens there are, so a token's numbers do not depend on its company. \param x
/// [tokens, cols] \param y  [tokens, y_stride]
void project(const flashmemory::bfloat16* weights, std::int64_t first, std::int64_t last, std::int64_t cols,
             const float* x, std::int32_t tokens, float* y, std::int64_t y_stride) noexcept;

/// out = x / sqrt(mean(x^2) + eps) * weight.
void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) noexcept;

/// gate = silu(gate) * up.
void silu_times(float* gate, const float* up, std::int64_t width) noexcept;

}  // namespace tinylm
