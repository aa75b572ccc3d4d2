// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Entries of a panel of keys, which lies transposed: [dim, panel_entries].
inline constexpr std::int64_t panel_entries = 64;

/// logits[r][e] = q[r] . key e of the panel, unscaled.
/// \param[in]  q      [rows, dim]
/// \param[out] logits [rows], `stride` floats apart, each [panel_entries]
void panel_logits(const float* q, std::int64_t rows, std::int64_t dim, const float* panel, float* logits,
                  std::int64_t stride) noexcept;

/// The largest of `count` logits, -Inf if there are none; NaN if one is NaN or +Inf.
float largest_logit(const float* logits, std::int64_t count) noexcept;

/// Sum of exp(logit - shift) over `count` logits: f32 within blocks, f64 over them.
double sum_of_exp(const float* logits, std::int64_t count, float shift) noexcept;

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
