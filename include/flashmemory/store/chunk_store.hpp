// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_reader.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/store/sequence.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// Asked before truncate() shortens a sequence, by whoever keeps something besides K/V that has to follow; see
/// chunk_store::guard_rollback().
struct rollback_guard {
  void* context = nullptr;
  /// Whether `sequence` may go back to `tokens`; if not, the shortest length that is in reach in `*lowest`.
  bool (*allows)(void* context, sequence_handle sequence, std::int64_t tokens,
                 std::int64_t* lowest) = nullptr;
};

/// How a change of the resident set went, chunk by chunk. selected = hits + recalled + refused.
struct recall_report {
  std::int64_t selected = 0;
  std::int64_t hits = 0;      ///< were in the fast tier already
  std::int64_t recalled = 0;  ///< were copied from the backing store
  /// Found no slot within the quota or the transition pool - the last of the request - or could not be read.
  std::int64_t refused = 0;
  std::int64_t evicted = 0;  ///< chunks that lost their pin
  std::int64_t bytes = 0;    ///< recalled x chunk bytes
  std::int64_t unreadable =
      0;                 ///< of refused: corrupt, or the medium would not give them; the rest came into force
  std::int64_t bad = 0;  ///< of unreadable: given up, so that planning should leave them out
  chunk_id first_unreadable = -1;
};

/// What finish_recall() does about copies that are still under way.
enum class late_policy : std::int32_t {
  keep,  ///< go on with the old set; a later call finishes
  wait,  ///< wait for them, up to the store's deadline
  fail,  ///< give them up
};

/// Running totals of a store since it was built.
struct store_counters {
  std::int64_t chunks_sealed = 0;
  std::int64_t chunks_written = 0;  ///< chunk writes to the backing store
  std::int64_t bytes_written = 0;
  std::int64_t recalls = 0;  ///< exchanges of a resident set, by recall() or finish_recall()
  std::int64_t recalls_failed = 0;
  std::int64_t recalls_late = 0;       ///< finish_recall() that found copies under way
  std::int64_t recalls_waited = 0;     ///< recall() and finish_recall() that had to wait for them
  std::int64_t recalls_cancelled = 0;  ///< started and given up, by whichever call
  std::int64_t selected = 0, hits = 0, recalled = 0, refused = 0;  ///< sums of recall_report
  std::int64_t bytes_recalled = 0;
  std::int64_t copies_on_write =
      0;                    ///< chunks duplicated because a fork or rollback had to write into a shared one
  std::int64_t faults = 0;  ///< calls that returned anything but ok and pending
  std::int64_t read_retries = 0;        ///< reads that were tried again at once
  std::int64_t chunks_unreadable = 0;   ///< sum of recall_report::unreadable
  std::int64_t chunks_bad = 0;          ///< times that a chunk was given up
  std::int64_t admissions_refused = 0;  ///< open() and fork() that threw admission_error
};

/// What a store occupies now, and may.
struct store_usage {
  std::size_t fast_bytes = 0;  ///< allocated in the fast tier: slots, keys, tables
  std::size_t fast_peak_bytes = 0;
  std::size_t fast_budget_bytes = 0;
  std::size_t backing_bytes = 0;  ///< chunks in the backing store x chunk bytes
  std::size_t backing_reserved_bytes = 0;
  std::size_t backing_budget_bytes = 0;
  std::int64_t sequences = 0;
};

/// Holds sequences as chunks in two tiers: a bounded fast tier that attention reads, and a backing store that
/// is complete at all times. One residency table, chunk-granular, shared by all layers.
///
/// A sequence grows by forward passes: append() for layer 0, 1, ... of the same tokens; layer 0 of the next
/// tokens only after the last layer of these. The open chunk, the newest `recent_chunks` complete chunks and
/// the first `sink_chunks` are always resident. A chunk that had a slot when it was completed keeps it until
/// the next recall(); chunks that lie within one append() as a whole and are neither sink nor recent after it
/// go straight to the backing store. A sequence whose quota covers max_tokens is resident as a whole,
/// whatever is recalled.
///
/// A prompt may come in pieces: where an append() brings whole chunks and the quota is full, the oldest
/// chunks that no recall has selected and that are neither sink nor recent make room; a quota of at least
/// sink_chunks + 2 * recent_chunks + 2 besides the selected chunks is always enough. In decoding it is the same:
/// where the quota is full, the oldest such chunk makes room for the next, so that decoding goes on although no
/// recall succeeds. Selected chunks are never dropped: if only they are left, append() returns budget_exceeded, so what
/// can be recalled at once is the quota less the chunks that the next interval completes.
///
/// A chunk that cannot be read costs that chunk: see recall(). One whose bytes are not those that were stored, or that
/// the medium has refused several times running, is bad: bad_chunks() names it, and it is tried again only if it is
/// asked for by name. One that is read again after all, or written again after a rollback, is bad no longer.
///
/// Threads: calls that change anything - all that are not const - are made by one thread at a time and never beside any
/// other call. Const calls may run beside each other. What lies behind the store is called accordingly: see
/// backing_store.
class FLASHMEMORY_API chunk_store : public chunk_reader {
 public:
  /// Opens an empty sequence and reserves all it may hold in both tiers.
  /// \throws admission_error with the arithmetic if a budget has no room; argument_error for options that
  ///     cannot work (e.g. a quota below sink + recent + the open chunk and what one interval adds)
  virtual sequence_handle open(const sequence_options& options) = 0;

  /// Opens a sequence that starts as a copy of `parent`: complete chunks are shared, the open one and the
  /// index keys are copied. Its resident set is what must be resident, then the parent's as far as its quota
  /// goes, newest first. Backing space is reserved for all of max_tokens, since a rollback may end the
  /// sharing.
  /// \throws admission_error, argument_error as open(); error with unknown_sequence or stale_sequence, or
  ///     with io_error or corrupt_chunk from the recall; argument_error if options.max_tokens is below the
  ///     parent's length or the parent is in the middle of a forward pass
  virtual sequence_handle fork(sequence_handle parent, const sequence_options& options) = 0;

  /// Gives an open sequence another quota, with the same meaning as sequence_options::max_resident_chunks: all of a prompt
  /// resident, say, and then a budget. A smaller one takes effect at once: chunks that no recall has selected go first,
  /// then selected ones, the oldest first. With 0 everything becomes resident and stays so. A recall under way is given up.
  /// Set-up call.
  /// \throws admission_error with the arithmetic if the fast tier has no room for it; argument_error as open(), or in the
  ///     middle of a forward pass; error with unknown_sequence or stale_sequence, or with io_error or corrupt_chunk for a
  ///     chunk that should become resident. The quota then is what it was. A store that does not override it throws
  ///     error with unsupported
  virtual void set_quota(sequence_handle sequence, std::int64_t max_resident_chunks);

  /// Drops all tokens from `tokens` on, e.g. rejected speculative ones, in all layers and index-key lanes; in the
  /// middle of a forward pass, the pass as well. The chunk that becomes the open one is copied if it is
  /// shared. It and the chunks that are the newest complete ones then are made resident; if they need the
  /// room, the oldest chunks that only a recall wanted lose their place.
  /// \returns out_of_range if `tokens` is negative or beyond what every layer has, or further back than the
  ///     sequence's selector can follow (fault: max_rollback_tokens; detach it first); io_error or corrupt_chunk from
  ///     the recall. On error nothing has changed
  virtual status truncate(sequence_handle sequence, std::int64_t tokens) noexcept = 0;

  /// Releases everything the sequence holds. Its handle becomes stale.
  virtual status close(sequence_handle sequence) noexcept = 0;

  /// Adds one layer's K and V of this forward pass and, when that completes a chunk, writes it through to the
  /// backing store. One token or a whole prompt; rows are entries, packed in the order of the batch. An item
  /// adds entries_for(position + num_tokens) - entries_for(position) of them.
  /// \param      items  sequences and positions; position must be the sequence's length in this layer
  /// \param      layer  [0, layers)
  /// \param[in]  k      [entries, kv_heads, key_dim], f32 or the geometry's dtype, any strides with unit last
  ///     stride
  /// \param[in]  v      [entries, kv_heads, value_dim], likewise
  /// \returns out_of_order if position or layer is not the next one (fault: expected, actual), sequence_full,
  ///     budget_exceeded, bad_shape, bad_dtype, io_error. On error no item of the batch has changed. Empty items are
  ///     skipped with their rows
  virtual status append(batch items, std::int32_t layer, const_tensor<3> k, const_tensor<3> v,
                        stream_ref stream) noexcept = 0;

  /// Does the books of a forward pass through all layers at once, for an engine whose kernels write K and V into the
  /// chunks themselves: new chunks get their slots, and resident() shows the longer sequences for every layer. Entries
  /// of the pass that are not written by then read as whatever is in the slot. Until commit_pass() the sequences take
  /// no other pass; truncate() to their length gives the pass up.
  /// \param items   as for append() of layer 0
  /// \param stream  may write into the new chunks once this has returned
  /// \returns what append() returns; unsupported if the pass would bring chunks that are not resident after it. On
  ///     error no item has changed
  virtual status begin_pass(batch items, stream_ref stream) noexcept = 0;

  /// Ends passes that begin_pass() began, all with the same items: what they completed is written through to the
  /// backing store as it is after all work queued on `stream` before.
  /// \param index_keys  the pass also wrote, into the pages that index_keys() names, the index keys of all lanes that its
  ///     tokens completed
  /// \returns out_of_order if an item is not in such a pass or, with index_keys, if its lanes' keys do not end where
  ///     the pass began; io_error, cuda_error. On error the passes stay open and the call may be repeated
  virtual status commit_pass(batch items, bool index_keys, stream_ref stream) noexcept = 0;

  /// Adds index keys of one lane; `first_key` must be the number of keys that are there.
  /// \param[in]  keys  [count, index_keys.bytes()], contiguous rows: the values, then the scale, whatever the layout the
  ///     store keeps them in
  /// \returns out_of_order, sequence_full, not_finite if a value or scale is NaN or Inf in the keys' type
  virtual status append_index_keys(sequence_handle sequence, std::int32_t lane, std::int64_t first_key,
                                   view<const std::byte, 2> keys, stream_ref stream) noexcept = 0;

  /// Makes `chunks` (ascending or in order of importance, complete chunks only, no duplicates), together with
  /// the chunks that are always resident, the sequence's resident set. The old set stays readable until the
  /// new one is complete; then they are exchanged in one step. What the quota has no room for is refused from
  /// the end of the list, and so are chunks that would have to be copied when no slot is free; they are
  /// counted. A chunk that cannot be read, though the read is tried again at once, is left out and counted, named by the
  /// report and by last_fault(), and the rest comes into force. On error the old set stays. A recall of the sequence that is under way is cancelled; else this
  /// is start_recall() and finish_recall() with late_policy::wait in one, with all free slots to use.
  /// \returns out_of_range (fault: chunk), bad_argument for a duplicate, cuda_error, timed_out
  virtual status recall(sequence_handle sequence, view<const chunk_id, 1> chunks, recall_report* report,
                        stream_ref stream) noexcept = 0;

  /// Starts what recall() does and returns: chunks are copied into free slots while the old set stays the
  /// resident set. On the CPU backend the copies have been made when it returns. One recall of a sequence can
  /// be under way. All recalls under way together have the transition pool to copy into, so a recall may be
  /// refused chunks that recall() would have found slots for.
  /// \param[out] report  as of recall(), less what is only known at the end; may be null
  /// \returns what recall() returns; out_of_order if one is under way. On error nothing has been started
  virtual status start_recall(sequence_handle sequence, view<const chunk_id, 1> chunks, recall_report* report,
                              stream_ref stream) noexcept = 0;

  /// Whether the sequence's recall can be finished. Never blocks.
  /// \returns ok if all copies have landed or none is under way; pending; else why a copy failed, after which
  ///     finish_recall() returns the same and gives the recall up
  virtual status poll_recall(sequence_handle sequence) noexcept = 0;

  /// Exchanges the resident set at this point of the stream: work that is enqueued later attends to the new
  /// set, which is what was asked for, what is always resident now, and the chunks completed since the start.
  /// Where the latter leave too little of the quota, the end of the request is dropped and counted as refused.
  /// \param      late    what to do about copies under way
  /// \param[out] report  of the whole recall; written on ok, may be null
  /// \returns out_of_order if no recall was started; with `keep` pending, then the old set stays and the recall
  ///     goes on; with `wait` timed_out, likewise; with `fail` timed_out, then the recall is given up; the error
  ///     of a copy, after which the recall is given up. The old set stays in all these cases
  virtual status finish_recall(sequence_handle sequence, late_policy late, recall_report* report,
                               stream_ref stream) noexcept = 0;

  /// Gives up a recall that is under way; harmless if none is. Slots go back at once and are not written by
  /// others before the copies into them have ended. close() and append_chunk() do it, and append() and truncate()
  /// do where they drop chunks that the recall has asked for, or need its slots. truncate() and append_chunk() may
  /// need those of other sequences' recalls too, and give them up even if they fail then.
  virtual status cancel_recall(sequence_handle sequence) noexcept = 0;

  /// Names the complete chunks that are given up as unreadable, ascending, as many as `out` has room for.
  /// \returns how many there are; 0 for a handle that names no open sequence
  virtual std::int64_t bad_chunks(sequence_handle sequence, view<chunk_id, 1> out) const noexcept {
    static_cast<void>(sequence);
    static_cast<void>(out);
    return 0;
  }

  /// From now on truncate() to less than the sequence's length asks `guard` first; a default one ends that. A selector
  /// sets it for the sequences that it serves.
  virtual void guard_rollback(sequence_handle sequence, rollback_guard guard) noexcept {
    static_cast<void>(sequence);
    static_cast<void>(guard);
  }

  /// Appends a chunk of `tokens` tokens in chunk_layout, all layers at once, straight into the backing store.
  /// The sequence's length must be a multiple of tokens_per_chunk(). The counterpart of read_chunk(). Any
  /// number of calls leaves the resident set that one append() of everything would have left.
  /// \returns out_of_order, sequence_full, budget_exceeded, bad_shape, bad_argument, io_error
  virtual status append_chunk(sequence_handle sequence, view<const std::byte, 1> bytes,
                              std::int64_t tokens) noexcept = 0;

  /// Running totals since it was built.
  virtual store_counters counters() const noexcept = 0;

  /// Bytes held and budgets, of both tiers.
  virtual store_usage usage() const noexcept = 0;

 protected:
  chunk_store() = default;
};

}  // namespace v0
}  // namespace flashmemory
