// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmemory {
inline namespace v0 {

/// What a sequence asks for when it is opened. Everything it may ever hold is reserved then, so no later step
/// can run out of memory.
struct sequence_options {
  std::int64_t max_tokens = 0;  ///< prompt and generated tokens together
  /// Fast-tier slots it may pin at once; more than the chunks of max_tokens counts as just those. 0 = all chunks
  /// are resident at all times and recall() leaves them so; any other value leaves the choice to recall().
  std::int64_t max_resident_chunks = 0;
  std::int32_t sink_chunks = 1;    ///< the first chunks, always resident
  std::int32_t recent_chunks = 2;  ///< the newest complete chunks, always resident besides the open one
};

/// What is known of an open sequence.
struct sequence_info {
  sequence_options options;
  std::int64_t tokens = 0;           ///< length by the layer that is furthest behind
  std::int64_t complete_chunks = 0;  ///< sealed: every entry of every layer is there
  std::int64_t resident_chunks = 0;  ///< pinned now, the open one included
  std::size_t slot_bytes = 0;        ///< fast tier: resident_chunks x chunk bytes
  std::size_t index_key_bytes = 0;   ///< fast tier: index keys, whole history, as reserved
  std::size_t table_bytes = 0;       ///< fast tier: tables of this sequence, as reserved
  std::size_t backing_bytes = 0;     ///< backing store: all chunks; shared ones count for each sequence
  /// Slots that a recall under way holds besides, in the transition pool: chunks that are on their way, or
  /// that other sequences had.
  std::int64_t pending_chunks = 0;
  std::int64_t bad_chunks =
      0;  ///< complete chunks that have been given up as unreadable; see chunk_store::bad_chunks()
};

}  // namespace v0
}  // namespace flashmemory
