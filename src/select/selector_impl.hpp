// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/error.hpp>
#include <flashmemory/select/selector.hpp>
#include <memory>
#include <vector>

#include "src/select/buffer.hpp"
#include "src/select/level1.hpp"
#include "src/select/served_sequence.hpp"

namespace flashmemory {
inline namespace v0 {

namespace detail {

/// Whether it is worth trying again soon.
inline bool may_pass(status code) noexcept {
  return code == status::io_error || code == status::corrupt_chunk || code == status::cuda_error ||
         code == status::timed_out;
}

/// Slots that a sequence may pin, never 0.
inline std::int64_t quota_of(const sequence_info& info, const kv_geometry& geometry) noexcept {
  const std::int64_t all = geometry.chunks_for(info.options.max_tokens),
                     quota = info.options.max_resident_chunks;
  return quota > 0 ? std::min(quota, all) : all;
}

}  // namespace detail

struct selector::impl : detail::level1_context {
  impl(std::unique_ptr<detail::level1> level1, chunk_store& store, const selection_policy& policy,
       const selector_options& options);
  ~impl();

  std::unique_ptr<detail::level1> scoring;
  selection_policy policy;

  std::vector<std::unique_ptr<detail::served_sequence>> pool;
  std::vector<std::int32_t> by_index;  ///< sequence_handle::index -> place in pool, -1 = not attached

  detail::buffer memory;
  view<std::uint8_t, 1> resident;
  view<chunk_id, 1> kept;
  view<chunk_id, 1> order;
  view<chunk_id, 1> bad;                                ///< of the sequence that is planned for
  view<float, 1> plain_scores;                          ///< its scores, held and without bad chunks'
  std::vector<detail::observed_rows> observed;          ///< [max_sequences]
  std::vector<detail::served_sequence*> due, to_score;  ///< room for max_sequences
  std::vector<detail::served_sequence*> under_way;      ///< refreshes in flight; room for max_sequences
  view<const float, 1> last_scores;

  std::uint64_t call = 0;
  selector_counters counters;
  mutable fault last_fault;

  status fail(const fault& f) const noexcept {
    last_fault = f;
    store.note(f);
    return f.code;
  }
  status fail(status code, sequence_handle sequence, const char* what) const noexcept;
  /// After a call to the store that returned `code`.
  status store_failed(status code, sequence_handle sequence, const char* what) const noexcept;

  void reserve_chunks(std::int64_t chunks);
  detail::served_sequence* find(sequence_handle sequence) const noexcept;
  status check_handle(sequence_handle sequence, detail::served_sequence** out) const noexcept;
  bool allows_rollback(sequence_handle sequence, std::int64_t tokens, std::int64_t* lowest) const noexcept;
  /// Handles, positions, lengths and duplicates of a batch; sums its tokens.
  status check_items(batch items, std::int64_t* tokens) noexcept;

  /// A record for `sequence`, not active yet. Everything that may throw happens here.
  detail::served_sequence& prepare(sequence_handle sequence, const sequence_info& info,
                                   const selection_policy& use);
  void activate(detail::served_sequence& s) noexcept;
  void deactivate(detail::served_sequence& s) noexcept;
  sequence_info open_info(sequence_handle sequence) const;

  // observe.cpp
  status observe(batch items, std::int32_t layer, tap_kind kind, const_tensor<3> rows,
                 stream_ref stream) noexcept;
  bool can_go_on(const detail::key_source& source, const detail::row_ring& ring,
                 std::int64_t tokens) const noexcept;
  status check_key_order(const detail::served_sequence& s, std::size_t source,
                         const batch_item& item) const noexcept;

  // step.cpp
  status step(batch items, stream_ref stream) noexcept;
  bool is_due(const detail::served_sequence& s) const noexcept;
  refresh_reason reason_for(const detail::served_sequence& s) const noexcept;
  status check_phases(batch items) noexcept;
  void enter_phase(detail::served_sequence& s, const batch_item& item) noexcept;
  void schedule_next(detail::served_sequence& s) noexcept;
  std::int64_t steps_to_first_refresh(const detail::served_sequence& s) const noexcept;
  void note_outcome(detail::served_sequence& s, bool may_pass) noexcept;

  // flight.cpp
  status launch(detail::served_sequence& s, refresh_reason reason) noexcept;
  status advance(detail::served_sequence& s, bool at_once, stream_ref stream) noexcept;
  status advance_all(stream_ref stream) noexcept;
  status start_recall(detail::served_sequence& s, bool at_once, stream_ref stream) noexcept;
  status finish_recall(detail::served_sequence& s, late_policy how, stream_ref stream) noexcept;
  bool fits_a_step(const detail::served_sequence& s) const noexcept;
  status finish_others(const detail::served_sequence& s, stream_ref stream) noexcept;
  void land(detail::served_sequence& s) noexcept;
  status crash(detail::served_sequence& s, status code) noexcept;
  void abandon(detail::served_sequence& s, bool again) noexcept;
  std::int32_t recalls_under_way() const noexcept;
  void tell(const detail::served_sequence& s, refresh_event_kind kind,
            std::int64_t wanted = 0) const noexcept;

  // refresh.cpp
  status make_plan(detail::served_sequence& s, const sequence_info& info, std::int64_t* asked) noexcept;
  status mark_resident(const detail::served_sequence& s, std::int64_t chunks) noexcept;
  selection_plan plan_with_fallback(detail::served_sequence& s, std::int64_t chunks, std::int64_t bad_count,
                                    std::int64_t* budget) noexcept;
  std::int64_t stage_budget(const detail::served_sequence& s, fallback_stage stage,
                            std::int64_t chunks) const noexcept;
  std::int64_t slots_for_recall(const detail::served_sequence& s) const noexcept;
};

namespace detail {

class input;

/// For backends and sessions: what a selector keeps of its sequences.
struct selector_access {
  /// selector::load_state() of the next `bytes` bytes of an input, of which few are in memory at a time.
  static void load_state(selector& s, sequence_handle sequence, input& in, std::uint64_t bytes,
                         const selection_policy* policy);

  static level1& scoring(selector& s) noexcept { return *s.impl_->scoring; }
  /// Null if the sequence is not attached.
  static served_sequence* find(selector& s, sequence_handle sequence) noexcept {
    const selector::impl& im = *s.impl_;
    if (sequence.index >= im.by_index.size() || im.by_index[sequence.index] < 0) return nullptr;
    served_sequence* const found = im.pool[static_cast<std::size_t>(im.by_index[sequence.index])].get();
    return found->handle == sequence ? found : nullptr;
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
