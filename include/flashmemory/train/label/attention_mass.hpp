// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <flashmemory/train/record/document.hpp>
#include <flashmemory/view.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// How logits are made, and how much of the attention is kept.
struct attention_mass_options {
  float softmax_scale = 0;           ///< multiplies logits; 0 = 1/sqrt(key_dim)
  float logit_soft_cap = 0;          ///< c > 0: logit = c * tanh(logit / c), after scaling
  view<const float, 1> sink_logits;  ///< [query heads]: a logit without an entry in each head's denominator,
                                     ///< unscaled; data null = none
  std::int32_t max_entries = 32;     ///< most entries kept per head
  float min_mass = 1e-3f;            ///< lighter entries are not kept
  float coverage = 1;                ///< no more are kept once they have this much of a head's mass together
  thread_hook threads = default_threads();
};

/// Attention that one token paid: its items of all layers and heads, in the order in which they were added.
using token_attention = std::vector<attention_entry>;

/// Appends, per token and query head, the heaviest entries of one layer: mass = softmax(scale * q k^T) over all
/// entries whose last token is at or before the query's position. Heavier first, lower entry first among
/// equals. Products in f32, sums of the softmax in f64. Many tokens at once share the reading of the keys.
/// \param      positions [tokens] of the queries, any order
/// \param[in]  q         [tokens, query heads, key_dim], f32, bf16 or f16, any strides, after position encoding
/// \param[in]  keys      [entries, kv_heads, key_dim], likewise; query heads a multiple of kv_heads. Entry e
///     completes with token (e + 1) * tokens_per_entry - 1
/// \param[out] out       [tokens]
/// \throws argument_error for shapes that disagree, or a position that sees entries beyond `keys`; error with
///     not_finite if a logit is NaN or +Inf. `out` is then as before
FLASHMEMORY_API void attention_mass(view<const std::int64_t, 1> positions, const_tensor<3> q,
                                    const_tensor<3> keys, std::int32_t tokens_per_entry, std::int32_t layer,
                                    const attention_mass_options& options, std::vector<token_attention>& out);

/// The same with the keys of a CPU store's sequence, all of whose chunks must be resident.
/// \throws as above; error with not_resident if a chunk is missing, and with what store.resident() returns
FLASHMEMORY_API void attention_mass(const chunk_store& store, sequence_handle sequence,
                                    view<const std::int64_t, 1> positions, const_tensor<3> q,
                                    std::int32_t layer, const attention_mass_options& options,
                                    std::vector<token_attention>& out);

/// The same for one token from logits that the engine has at hand, e.g. those of a model's own indexer: final
/// ones, scale and cap are not applied.
/// \param[in] logits [query heads, entries], f32, unit last stride; -Inf = not seen
FLASHMEMORY_API void attention_mass(view<const float, 2> logits, std::int32_t layer,
                                    const attention_mass_options& options, token_attention& out);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
