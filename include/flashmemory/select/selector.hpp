// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/indexer/indexer.hpp>
#include <flashmemory/memory.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/select/policy.hpp>
#include <flashmemory/select/refresh_events.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <memory>
#include <vector>

namespace flashmemory {
inline namespace v0 {

namespace detail {
class level1;
struct selector_access;
}  // namespace detail

/// When a refresh takes effect.
enum class apply_mode : std::int32_t {
  at_once,  ///< select_chunks() returns with the new set in force; it waits for scores and copies
  overlapped,  ///< select_chunks() never blocks: the new set comes into force in the first call that finds its chunks
               ///< there, at a step boundary
};

/// Set-up of a selector.
struct selector_options {
  std::int32_t max_sequences = 64;
  /// How far truncate() may go back, counted from the longest length that was observed, without the key
  /// encoder losing its window. Going back to 0 is always possible.
  std::int32_t max_rollback_tokens = 64;
  /// Spread refreshes over the interval, so that sequences do not all refresh on one step: the first one after the warm
  /// start comes early, by how much depends on the length of the sequence's prompt and on nothing else.
  bool stagger = true;
  apply_mode apply = apply_mode::at_once;
  /// Overlapped: a set that was chosen more steps ago than this when its chunks are not there yet is late.
  /// Room for as many steps' tokens, at most an interval's, is kept free in a sequence's quota; see
  /// sequence_options_for().
  std::int32_t max_staleness = 8;
  /// What a late refresh meets: `keep` goes on without, until the quota has no room for another step, and then waits;
  /// `wait` blocks up to the deadline; `fail` gives it up (timed_out).
  late_policy late = late_policy::wait;
  /// Overlapped: recalls under way at a time. More of them need a transition pool with room for the new chunks of all,
  /// or chunks are refused.
  std::int32_t concurrent_recalls = 1;
  std::chrono::milliseconds deadline{1000};  ///< for scores; copies have the store's
  refresh_event_hook events;                 ///< is told of every refresh, where it is set
  memory_resource memory = default_memory();
  thread_hook threads = default_threads();
};

/// Why a sequence was refreshed.
enum class refresh_reason : std::int32_t {
  none,
  warm_start,  ///< the sequence's first
  interval,
  requested,   ///< by request_refresh()
  prompt_end,  ///< of a later prompt
  prompt,      ///< after a piece, with selection_policy::select_in_prompts
};

/// How far a sequence has fallen back.
enum class fallback_stage : std::int32_t { normal, widened, everything };

/// The last refresh of a sequence.
struct selection_report {
  refresh_reason reason = refresh_reason::none;
  std::int64_t position = -1;  ///< of the newest token then; the set serves (position, position + interval]
  std::int64_t complete_chunks = 0;
  std::int64_t budget = 0;  ///< chunks that were allowed
  selection_plan plan;
  recall_report recall;
  fallback_stage stage = fallback_stage::normal;
  std::int64_t refreshes = 0;  ///< of this sequence so far
  /// Steps between the one whose position was scored and the one after which the set was in force; 0 = the same.
  std::int64_t staleness = 0;
  double score_seconds = 0;  ///< level 1, until the host had the scores
  double recall_seconds = 0;
};

/// Running totals of a selector.
struct selector_counters {
  std::int64_t steps = 0;  ///< calls of select_chunks()
  std::int64_t refreshes = 0;
  std::int64_t refreshes_failed = 0;
  std::int64_t retries =
      0;  ///< refreshes that were due early, since the one before met something that may pass
  std::int64_t unreadable = 0;  ///< chunks that refreshes had to leave out; sum of recall_report::unreadable
  std::int64_t nan_scores = 0;
  std::int64_t nan_keys = 0;    ///< keys that NaN or Inf went into; stored as all zero
  std::int64_t widened = 0;     ///< stage changes towards more
  std::int64_t everything = 0;  ///< of those, to everything
  std::int64_t recovered = 0;   ///< stage changes back
  std::int64_t late = 0;        ///< refreshes that were not there after max_staleness steps
  std::int64_t abandoned = 0;   ///< refreshes under way that a rollback or detach() made pointless
  std::int64_t staleness = 0;   ///< sum over refreshes
  std::int64_t max_staleness = 0;
};

/// Keeps, per sequence, what level 1 needs between steps: the newest token's vectors, the key encoder's
/// window and the cadence. One selector serves one store and one indexer, both of which must outlive it.
/// Calls are made from one thread at a time.
class FLASHMEMORY_API selector {
 public:
  /// \throws argument_error if the policy cannot work or the indexer does not fit the store
  selector(chunk_store& store, indexer& index, const selection_policy& policy,
           const selector_options& options = {});
  /// For backends: with a level 1 of theirs.
  selector(std::unique_ptr<detail::level1> scoring, chunk_store& store, const selection_policy& policy,
           const selector_options& options);
  /// Gives up the refreshes that are under way, with the recalls that were started for them.
  ~selector();
  selector(const selector&) = delete;
  selector& operator=(const selector&) = delete;

  /// Starts to serve a sequence. Set-up call: may allocate, for the longest sequence among all that were attached.
  /// \param policy  for this sequence only; null = the selector's. Its sink and recent chunks must be the
  ///     sequence's.
  /// \throws argument_error, admission_error when max_sequences are attached
  void attach(sequence_handle sequence, const selection_policy* policy = nullptr);

  /// Serves `child`, a fork of `parent`, from where the parent stands.
  /// \param policy  for the child only, as in attach(); null = the parent's
  /// \throws argument_error, admission_error as attach(); argument_error if the parent's policy is `everything`
  ///     and the child's is not, since the parent then was not observed; error with unknown_sequence
  void attach_fork(sequence_handle parent, sequence_handle child, const selection_policy* policy = nullptr);

  /// Stops to serve a sequence, and gives up a recall that was started for it. Closed sequences are detached by attach() of a new one in their place.
  void detach(sequence_handle sequence) noexcept;

  /// Shows the hidden states of one layer for this forward pass; layers that no tap reads are ignored, and so
  /// are sequences whose policy is `everything`. For a key tap, the index keys that became complete are
  /// encoded and appended to the store. Call it for every tap layer in every forward pass, prefill included,
  /// before select_chunks(). After store.truncate() simply continue at the shorter length; the store refuses to go
  /// back further than the key encoder can follow (out_of_range, fault: max_rollback_tokens).
  ///
  /// NaNs and Infs are no error: in the newest token they travel to the scores; a key that they went into is
  /// stored as all zero. Both are counted.
  ///
  /// \param[in]  hidden  [tokens, width], f32, bf16 or f16: the input of the layer's attention block, normed
  ///
  /// \returns for key taps: out_of_order if position is not the next one, nor within max_rollback_tokens before
  ///          it, nor 0, or if the store's keys do not end there; what append_index_keys() returns, after which the
  ///          call may be repeated
  status observe(batch items, std::int32_t layer, const_tensor<2> hidden, stream_ref stream) noexcept;

  /// The same for taps of kind queries.
  /// \param[in]  queries [tokens, heads * key_dim]
  status observe_queries(batch items, std::int32_t layer, const_tensor<2> queries,
                         stream_ref stream) noexcept;

  /// The same for taps of kind keys.
  /// \param[in]  k  [tokens, kv_heads, key_dim], f32, bf16 or f16, any strides (on a device with unit last stride): the
  ///     tensor that goes to append()
  status observe_keys(batch items, std::int32_t layer, const_tensor<3> k, stream_ref stream) noexcept;

  /// Refreshes at the next select_chunks() whatever the cadence says, e.g. on a change of topic.
  status request_refresh(sequence_handle sequence) noexcept;

  /// Tells how much attention mass the resident chunks got, in [0, 1], where an engine samples it; see
  /// fallback_policy.
  status report_attention_mass(sequence_handle sequence, float mass) noexcept;

  /// The last refresh of a sequence.
  /// \returns stale_sequence if it was closed
  status report(sequence_handle sequence, selection_report* out) const noexcept;

  /// The indexer's scores of the last refresh [complete_chunks then], before selection_policy::hold; valid until the next call that refreshes any
  /// sequence.
  view<const float, 1> last_scores() const noexcept;

  /// Whether a refresh of the sequence is under way (overlapped mode): its set in force is the old one.
  bool refreshing(sequence_handle sequence) const noexcept;

  /// Running totals since it was built.
  selector_counters counters() const noexcept;
  /// Details of the last call that did not return ok.
  fault last_fault() const noexcept;

  /// The store it serves.
  chunk_store& store() const noexcept;
  /// What its indexer reads.
  const indexer_taps& taps() const noexcept;
  /// Whether observe() (`hidden`), observe_queries() (`queries`) or observe_keys() (`keys`) has to be called for `layer`:
  /// what it is given of other layers is ignored.
  bool reads(std::int32_t layer, tap_kind kind = tap_kind::hidden) const noexcept;

  /// Host bytes held for one attached sequence (vectors, key window); not part of the KV footprint but
  /// counted here. With selection_policy::hold come 8 bytes for each chunk that the sequence may have.
  std::size_t bytes_per_sequence() const noexcept;

  /// Cadence and key window of a sequence as bytes, for sessions. Rows that a rollback of the store has dropped are left
  /// out, and so is the policy.
  std::vector<std::byte> save_state(sequence_handle sequence) const;

  /// Attaches `sequence` with a saved state, which may come from a selector of another policy, cadence or
  /// max_rollback_tokens: what it says is bounded by what this one has.
  /// \param policy  for this sequence only, as in attach(); null = the selector's
  /// \throws format_error if it does not fit this selector's taps or the sequence
  void load_state(sequence_handle sequence, const std::byte* data, std::size_t bytes,
                  const selection_policy* policy = nullptr);

 private:
  friend FLASHMEMORY_API status select_chunks(selector& select, batch items, stream_ref stream) noexcept;
  friend struct detail::selector_access;
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

/// The first of the two calls of every step: once, after the last layer. Counts tokens per sequence; for a
/// sequence that is due, scores its chunks, applies the policy and exchanges its resident set, which then
/// serves the next `interval` tokens. The first call for a sequence (after its prompt) is the warm start;
/// from then on it is due every `interval` tokens, the first time earlier with selector_options::stagger, which spreads
/// the refreshes of several sequences over different steps. After a rollback by a whole interval or more it is due at once,
/// after a shorter one when it gets to where it would have been due.
///
/// A prompt that comes in pieces says so: an item of phase `prompt` is not due, one of phase `prompt_end` is, whatever the
/// cadence says, and the cadence begins anew. That holds for the first prompt and for those that follow later. With
/// selection_policy::select_in_prompts each piece is due.
///
/// In overlapped mode a call moves each refresh under way as far as it gets without blocking - scores, plan, recall, new
/// set - and may return before the sets that it started are in force; what finds its chunks there at once, as on the
/// CPU backend, is in force when it returns. A sequence has one refresh under way at most. While it is on its way
/// chunks that are completed stay resident. selection_report::staleness says how old a set was when it came into force.
///
/// When nothing is due it costs next to nothing. It never allocates. A recall that the sequence has under way from
/// elsewhere is cancelled. If a sequence's refresh fails its old set stays, the others go on, and the first error is
/// returned; it is tried again after another interval, or at once by request_refresh(). What may pass - cuda_error,
/// timed_out, chunks that could not be read - is tried again after 1 token, then 2, 4, 8 and so on, up to the interval.
/// Chunks that could not be read are no error: the rest of the set comes into force, and a chunk that is bad is not
/// planned any more; see selection_report::recall and selector_counters::unreadable.
/// \returns stale_sequence if a sequence was closed, without any change; out_of_order, likewise, if an item of phase
///     `decode` goes on behind a prompt that has not ended, or one of phase `prompt_end` ends what has ended with the same
///     token before (unless that selection failed); hidden_missing or index_keys_missing if observe() was
///     not called for all taps; what recall() returns; timed_out
FLASHMEMORY_API status select_chunks(selector& select, batch items, stream_ref stream) noexcept;

}  // namespace v0
}  // namespace flashmemory
