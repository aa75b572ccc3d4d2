// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/parallel.hpp>
#include <flashmemory/train/document.hpp>
#include <flashmemory/view.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// How much of the attention is kept, and how logits are made.
struct attention_mass_options {
  float softmax_scale = 0;        ///< multiplies logits; 0 = 1/sqrt(key_dim)
  float logit_soft_cap = 0;       ///< c > 0: logit = c * tanh(logit / c), after scaling
  std::int32_t max_entries = 32;  ///< most entries kept per head
  float min_mass = 1e-3f;         ///< lighter entries are not kept
  float coverage = 1;             ///< no more are kept once they have this much of a head's mass together
};

/// Appends the heaviest entries of every head of one token at one layer. mass = softmax(scale * q k^T) over all
/// `entries`, in f32 with f64 sums; heavier first, lower entry first among equals.
/// \param[in]  q        [query heads, key_dim], f32, after position encoding
/// \param[in]  keys     [entries, kv_heads, key_dim], f32, bf16 or f16, any stride, all history that the token
///     sees, itself included; query heads must be a multiple of kv_heads
/// \param      sink_logits [query heads] a logit without an entry in each head's denominator; data null = none
/// \throws argument_error for shapes that disagree; error with not_finite if a logit is NaN
FLASHMEMORY_API void attention_mass(view<const float, 2> q, const_tensor<3> keys, std::int32_t layer,
                                    const attention_mass_options& options, view<const float, 1> sink_logits,
                                    std::vector<attention_entry>& out,
                                    thread_hook threads = default_threads());

/// The same from logits that the engine has at hand, e.g. those of a model's own indexer.
/// \param[in] logits [query heads, entries], scaled and capped by the caller: those two options are not read
FLASHMEMORY_API void attention_mass(view<const float, 2> logits, std::int32_t layer,
                                    const attention_mass_options& options, view<const float, 1> sink_logits,
                                    std::vector<attention_entry>& out,
                                    thread_hook threads = default_threads());

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
