// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// Number of a chunk inside its sequence: chunk c holds entries [c * entries_per_chunk, (c + 1) *
/// entries_per_chunk).
using chunk_id = std::int32_t;

/// Names an open sequence. A handle outlives its sequence harmlessly: calls with it then report
/// `stale_sequence`. It never means a batch row.
struct sequence_handle {
  std::uint32_t index = ~std::uint32_t{0};
  std::uint32_t generation = 0;

  /// The same sequence: a reused place has another generation.
  friend constexpr bool operator==(sequence_handle a, sequence_handle b) noexcept {
    return a.index == b.index && a.generation == b.generation;
  }
  /// Different sequences.
  friend constexpr bool operator!=(sequence_handle a, sequence_handle b) noexcept { return !(a == b); }
};

/// What an item's tokens are to selection; nothing else looks at it.
enum class item_phase : std::int32_t {
  decode,  ///< generated tokens, drafts included. A sequence's first tokens too, if its prompt comes as a whole
  prompt,      ///< a piece of a prompt, with more to come
  prompt_end,  ///< the last piece of a prompt, or all of it; however short, a selection is due after it
};

/// One sequence's part of a forward pass: `num_tokens` tokens starting at `position`.
/// Rows of packed tensors follow the order of the items.
///
/// An item with a default handle is empty, so that batches of a fixed shape can be filled in part: every call of a step
/// skips it. Its rows - those that a sequence at `position` would have - stay in the packed tensors, are not read, and
/// attention writes zero to them.
struct batch_item {
  sequence_handle sequence;
  std::int64_t position = 0;    ///< of its first token, counted from 0
  std::int32_t num_tokens = 1;  ///< 1 in plain decoding, more in prompts and speculative decoding
  item_phase phase = item_phase::decode;

  /// Whether it names no sequence.
  constexpr bool empty() const noexcept { return sequence == sequence_handle{}; }
};

/// The sequences of one forward pass; no sequence may appear twice. One list serves all calls of a step.
using batch = view<const batch_item, 1>;

}  // namespace v0
}  // namespace flashmemory
