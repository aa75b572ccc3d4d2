// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/chunk_store.hpp>

#include "src/store/chunk_record.hpp"
#include "src/store/fast_memory.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// A chunk of a sequence.
struct chunk_entry {
  chunk_record* record = nullptr;
  std::uint32_t mark = 0;  ///< equals sequence_state::mark while a call has visited this chunk
};

/// A chunk of a sequence's resident set.
struct pinned_chunk {
  chunk_record* record = nullptr;
  chunk_id id = 0;
  bool imported = false;  ///< placed by append_chunk() and not confirmed by a recall since
  bool loaded = false;    ///< of a set that is being built: copied into its slot for it
  bool selected = false;  ///< a recall has asked for it
  bool vacated = false;   ///< makes room in the append() in progress: its pin is gone already
};

/// Everything the store knows of one open sequence. One block, allocated by open(): this struct, then its
/// arrays.
struct sequence_state {
  kv_geometry geometry;
  sequence_options options;
  std::int64_t quota = 0;     ///< most chunks it may pin
  std::int64_t capacity = 0;  ///< most chunks it may have
  bool whole = false;         ///< opened without a quota, so everything is pinned

  std::int64_t tokens = 0;       ///< in every layer
  std::int64_t span_tokens = 0;  ///< of the forward pass in progress
  std::int32_t next_layer = 0;   ///< layers below it have the span already; 0 = no pass in progress

  std::int64_t num_chunks = 0;      ///< in `chunks`, those of the span included
  std::int64_t pending_chunks = 0;  ///< what num_chunks becomes if the append() in progress succeeds
  chunk_entry* chunks = nullptr;    ///< [capacity]
  std::uint32_t mark = 0;
  std::uint64_t batch_mark = 0;  ///< the append() that saw this sequence last

  std::int64_t num_pinned = 0;
  pinned_chunk* pinned = nullptr;  ///< [quota] ascending
  pinned_chunk* spare = nullptr;   ///< [quota] where the next resident set is built

  /// A recall under way: chunks that were asked for and got a slot, in order of importance. Each is pinned.
  bool recall_pending = false;
  pinned_chunk* coming = nullptr;  ///< [quota]
  std::int64_t num_coming = 0;
  std::int64_t coming_extra = 0;     ///< of them, those that were not in `pinned` at the start
  std::int64_t coming_complete = 0;  ///< complete chunks at the start
  recall_report coming_report;

  /// [0] is what layers without the span see, [1] what layers with it see.
  resident_chunk* views[2] = {};
  std::int64_t num_view[2] = {};
  std::uint64_t set_version = 1;        ///< new whenever pinned chunks come or go
  std::uint64_t view_versions[2] = {};  ///< of the pinned chunks that a view was built from

  std::byte* keys = nullptr;         ///< [key_streams][capacity] pages
  std::int64_t* num_keys = nullptr;  ///< [key_streams]

  rollback_guard guard;  ///< of who follows rollbacks

  std::size_t table_bytes = 0;
  std::size_t key_bytes = 0;

  std::int64_t entries() const noexcept { return geometry.entries_for(tokens); }
  std::int64_t complete_chunks() const noexcept { return entries() / geometry.entries_per_chunk; }
  bool in_span() const noexcept { return next_layer > 0; }
  /// Tokens that `layer` has.
  std::int64_t tokens_of(std::int32_t layer) const noexcept {
    return tokens + (layer < next_layer ? span_tokens : 0);
  }
  std::int64_t max_keys() const noexcept { return options.max_tokens / geometry.index_keys.tokens_per_key; }
  std::size_t index_key_lane_bytes() const noexcept {
    return std::size_t(capacity) * chunk_layout(geometry).index_key_page_bytes();
  }

  /// True if chunk `id` must be resident once `complete` chunks are complete.
  bool always_resident(std::int64_t id, std::int64_t complete) const noexcept {
    return whole || id < options.sink_chunks || id >= complete - options.recent_chunks;
  }

  /// A value of `mark` that no chunk carries.
  std::uint32_t fresh_mark() noexcept;

  /// Writes what a layer with `num_entries` entries may read to views[which].
  void build_view(int which, std::int64_t num_entries) noexcept;
};

/// Bytes of the block of a sequence with these options.
std::size_t sequence_block_bytes(const kv_geometry& geometry, std::int64_t quota,
                                 std::int64_t capacity) noexcept;

/// Lays a sequence out in `block`, which has sequence_block_bytes() bytes aligned to 64.
sequence_state* make_sequence(void* block, const kv_geometry& geometry, const sequence_options& options,
                              std::int64_t quota, std::int64_t capacity) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
