// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/options.hpp>
#include <flashmemory/batch.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_reader.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// Query tokens of a decoding item, drafts included, at most: items of more are pieces of a prompt, which other kernels
/// serve. Over what is resident a decoding item's result does not depend on that.
inline constexpr std::int32_t most_decode_tokens = 8;

/// What calls with items of more than most_decode_tokens, or with attend_reach::everything, need besides.
struct prompt_extent {
  std::int64_t rows = 0;   ///< query tokens of such items in one call, together
  std::int64_t items = 1;  ///< such items in one call
  bool streamed = false;   ///< some of what they attend to may not be resident
  std::int32_t concurrency =
      default_threads().concurrency;  ///< of attend_options::threads; with less scratch fewer
                                      ///< threads work, with the same result
};

/// Bytes of scratch for sparse_attend() with up to `rows` query tokens in all and sequences of up to
/// `max_resident_chunks` resident chunks, pieces of prompts apart; the largest size_t if that is more than can be
/// addressed.
FLASHMEMORY_API std::size_t attend_workspace_bytes(const kv_geometry& geometry, std::int32_t query_heads,
                                                   std::int64_t rows, std::int64_t max_resident_chunks,
                                                   const prompt_extent& prompts = {}) noexcept;

/// The second of the two calls of every step, once per layer: attention of this step's queries over the
/// entries of each sequence's resident chunks, of the level-2 subset, or of everything. out = softmax(scale * q k^T) v,
/// paper section on sparse decoding.
///
/// Items may have any number of tokens, causal among themselves: decoding rows and pieces of prompts mix in one batch.
/// With attend_reach::everything, and for what of a prompt's piece is not resident itself, chunks are read where the
/// backing store has them, or through scratch in waves of a few; a wave holds one layer's part of its chunks. The softmax
/// goes through chunks in ascending order whatever is resident, so that two residencies give equal bits.
///
/// A query at position p sees entries whose last token is at or before p, its own included, so the step's K
/// and V must have been appended. The result depends on which chunks are resident, never on where they lie,
/// how many threads work or what else is in the batch: with everything resident it is bit for bit that of
/// dense attention by this call.
/// \param      reader a chunk_store, or an engine's own paged cache
/// \param      items  sequences and positions
/// \param[in]  q      [tokens, query heads, key_dim], f32 or the geometry's dtype; query heads a multiple of
///     kv_heads
/// \param[out] out    [tokens, query heads, value_dim], any dtype; must not overlap q. Zero for a row without
///     entries
/// \returns not_resident if a listed entry's chunk is not resident (fault: sequence, chunk); bad_shape,
///     bad_dtype, out_of_order if K and V up to the last query are not there yet; workspace_small;
///     unsupported for dims other than multiples of 16 up to 256; for chunks that are streamed what
///     chunk_reader::read_layer() returns (fault: sequence, chunk). On error `out` is untouched, and the reader takes note
///     of the fault
FLASHMEMORY_API status sparse_attend(const chunk_reader& reader, batch items, std::int32_t layer,
                                     const_tensor<3> q, tensor<3> out, const attend_options& options,
                                     stream_ref stream) noexcept;

/// Joins two partial results over disjoint sets of entries into the result over both, in place of the first.
/// The sink logit must be part of at most one of them. A part with lse +inf has all the weight.
/// \param[in,out] out  [rows, heads, value_dim]
/// \param[in,out] lse  [rows, heads]
/// \param[in]     other_out, other_lse  the other part
FLASHMEMORY_API status merge_attention(view<float, 3> out, view<float, 2> lse, view<const float, 3> other_out,
                                       view<const float, 2> other_lse) noexcept;

/// Attention mass of each resident chunk: the largest softmax weight, summed over the chunk's entries, that
/// any query head of any row of the item gives it. For oracles, quality telemetry and recordings; not a fast
/// path.
/// \param[in]  lse   [rows, query heads] as written by sparse_attend() for the same call without soft cap
///     differences
/// \param[out] mass  [chunks of the sequence]; 0 for chunks that are not resident. Several layers are joined
///     by calling it with `accumulate`, which keeps the larger value
/// \returns as sparse_attend(); unsupported with options.entries. NaN in K or q makes a chunk's mass NaN
FLASHMEMORY_API status chunk_attention_mass(const chunk_reader& reader, const batch_item& item,
                                            std::int32_t layer, const_tensor<3> q, view<const float, 2> lse,
                                            const attend_options& options, view<float, 1> mass,
                                            bool accumulate) noexcept;

}  // namespace v0
}  // namespace flashmemory
