// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "src/store/chunk_record.hpp"
#include "src/store/fast_memory.hpp"
#include "src/store/fast_tier.hpp"
#include "src/store/sequence.hpp"
#include "src/store/slot_pool.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Low bits of a handle's generation that count; those above them tell stores apart.
inline constexpr std::uint32_t generation_bits = 20, generation_mask = (1u << generation_bits) - 1;

/// Where a sequence lives; what a handle's index means.
struct sequence_place {
  sequence_state* state = nullptr;
  std::uint32_t generation = 1;  ///< of the sequence that is here, or of the next one
};

/// Device memory that may still be read by what is under way, and is taken again for the same size.
struct retired_block {
  std::byte* data;
  std::size_t bytes;
};

/// A tier's fault, of this chunk.
inline fault of_chunk(fault f, std::int64_t sequence, std::int64_t chunk) noexcept {
  f.sequence = sequence;
  f.chunk = chunk;
  return f;
}

/// How a backend's code beside the store reaches what lies behind it.
struct store_access {
  static tiered_chunk_store::impl& of(tiered_chunk_store& store) noexcept { return *store.impl_; }
  static const tiered_chunk_store::impl& of(const tiered_chunk_store& store) noexcept { return *store.impl_; }
};

/// The most chunks that an open sequence may pin; 0 if none is open.
FLASHMEMORY_API std::int64_t largest_quota(const tiered_chunk_store& store) noexcept;

}  // namespace detail

struct tiered_chunk_store::impl {
  impl(const store_options& wanted, std::unique_ptr<backing_store> own_backing,
       std::unique_ptr<detail::fast_tier> own_tier);
  ~impl();

  // admission.cpp
  [[noreturn]] void refuse_admission(const std::string& message);
  sequence_handle open(const sequence_options& wanted);
  void check_options(const sequence_options& wanted) const;
  detail::sequence_state* admit(const sequence_options& wanted, std::uint32_t* index);
  void publish(std::uint32_t index, detail::sequence_state* s) noexcept;
  void withdraw(detail::sequence_state* s) noexcept;
  void discard(std::uint32_t index) noexcept;
  std::byte* take_keys(std::size_t bytes) noexcept;
  void give_keys(std::byte* block, std::size_t bytes) noexcept;
  bool retired_has(std::size_t bytes) const noexcept;
  void reclaim() noexcept;
  std::int64_t transition_slots(const detail::sequence_state* added) const noexcept;
  std::int64_t slots_to_keep() const noexcept;
  status close(sequence_handle sequence) noexcept;

  // quota.cpp
  void set_quota(sequence_handle sequence, std::int64_t max_resident_chunks);
  detail::sequence_state* with_quota(detail::sequence_state& s, const sequence_options& wanted);

  // fork.cpp
  sequence_handle fork(sequence_handle parent, const sequence_options& wanted);

  // append.cpp
  status append(batch items, std::int32_t layer, const_tensor<3> k, const_tensor<3> v,
                stream_ref stream) noexcept;
  fault check_rows(const char* const* names, const const_tensor<3>& rows, std::int64_t dim) const noexcept;
  fault check_item(const batch_item& item, std::int32_t layer) const noexcept;
  /// Rows of K and V that an item has, an empty one included.
  std::int64_t rows_of(const batch_item& item) const noexcept {
    return geometry.entries_for(item.position + item.num_tokens) - geometry.entries_for(item.position);
  }
  /// What a batch brings: rows of K and V and, with layer 0, new chunks.
  struct span_needs {
    std::int64_t rows = 0, slots = 0, records = 0;
    std::int64_t way = 0;  ///< slots that give_way() frees
  };
  fault check_growth(const batch_item& item, detail::sequence_state& s, span_needs* needs) noexcept;
  template <class F>
  std::int64_t for_each_giving_way(detail::sequence_state& s, std::int64_t num_tokens,
                                   const F& visit) noexcept;
  void give_way(detail::sequence_state& s, std::int64_t num_tokens) noexcept;
  void vacate(detail::sequence_state& s, std::int64_t num_tokens) noexcept;
  void restore(detail::sequence_state& s, std::uint32_t sequence) noexcept;
  fault begin_span(detail::sequence_state& s, std::int64_t num_tokens) noexcept;
  void abandon_span(detail::sequence_state& s) noexcept;
  fault write_rows(const batch_item& item, std::int32_t layer, const const_tensor<3>& k,
                   const const_tensor<3>& v, std::int64_t first_row) noexcept;
  fault seal(const batch_item& item) noexcept;
  void adopt_span(const batch_item& item) noexcept;
  void end_span(const batch_item& item) noexcept;
  fault check_items(batch items, std::int32_t layer, span_needs* needs) noexcept;
  fault check_pools(const span_needs& needs) const noexcept;
  fault begin_spans(batch items, const span_needs& needs) noexcept;
  void abandon_spans(batch items) noexcept;
  void adopt_spans(batch items) noexcept;

  // pass.cpp
  status begin_pass(batch items, stream_ref stream) noexcept;
  status commit_pass(batch items, bool index_keys, stream_ref stream) noexcept;
  fault check_open_pass(const batch_item& item, bool index_keys) noexcept;

  // index_keys.cpp
  status append_index_keys(sequence_handle sequence, std::int32_t lane, std::int64_t first_key,
                           view<const std::byte, 2> keys, stream_ref stream) noexcept;

  // recall.cpp
  fault enter_recall(sequence_handle sequence, stream_ref stream, detail::sequence_state** s) noexcept;
  status refuse_recall(const fault& f) noexcept;
  status recall(sequence_handle sequence, view<const chunk_id, 1> chunks, recall_report* report,
                stream_ref stream) noexcept;
  status start_recall(sequence_handle sequence, view<const chunk_id, 1> chunks, recall_report* report,
                      stream_ref stream) noexcept;
  fault fetch(detail::chunk_record& record, detail::fast_slot& slot, std::uint32_t sequence,
              std::int64_t chunk) noexcept;
  fault load(detail::chunk_record& record, std::uint32_t sequence, std::int64_t chunk) noexcept;
  void count_failure(detail::chunk_record& record, const fault& f) noexcept;
  void read_again(detail::chunk_record& record) noexcept;
  void leave_out(recall_report& r, const detail::chunk_record& record, const fault& f) noexcept;
  fault settle(detail::pinned_chunk* list, std::int64_t count) noexcept;
  void undo_loads(detail::pinned_chunk* list, std::int64_t count) noexcept;
  std::int64_t slots_in_transit() const noexcept;
  fault check_request(detail::sequence_state& s, std::uint32_t sequence,
                      const view<const chunk_id, 1>& chunks, std::uint32_t* requested) noexcept;
  fault begin_recall(detail::sequence_state& s, std::uint32_t sequence, const view<const chunk_id, 1>& chunks,
                     std::uint32_t requested, bool alone) noexcept;

  // flip.cpp
  status poll_recall(sequence_handle sequence) noexcept;
  status finish_recall(sequence_handle sequence, late_policy late, recall_report* report,
                       stream_ref stream) noexcept;
  status cancel_recall(sequence_handle sequence) noexcept;
  fault landed(detail::sequence_state& s, std::uint32_t sequence) noexcept;
  fault await(detail::sequence_state& s, std::uint32_t sequence) noexcept;
  void release_coming(detail::sequence_state& s) noexcept;
  void drop_coming(detail::sequence_state& s, std::uint32_t sequence, std::int64_t at) noexcept;
  void drop_recall(detail::sequence_state& s) noexcept;
  void make_room(detail::sequence_state& s, std::int64_t wanted) noexcept;
  std::int64_t exchange(detail::sequence_state& s, std::int64_t count) noexcept;
  void flip(detail::sequence_state& s, std::uint32_t sequence, recall_report* report) noexcept;

  // truncate.cpp
  status truncate(sequence_handle sequence, std::int64_t tokens) noexcept;

  // transfer.cpp
  status read_chunk(sequence_handle sequence, chunk_id chunk, view<std::byte, 1> out) const noexcept;
  const std::byte* layer_address(sequence_handle sequence, chunk_id chunk, std::int32_t layer) const noexcept;
  status read_layer(sequence_handle sequence, chunk_id chunk, std::int32_t layer,
                    view<std::byte, 1> out) const noexcept;
  status append_chunk(sequence_handle sequence, view<const std::byte, 1> bytes, std::int64_t tokens) noexcept;
  void zero_missing(const detail::sequence_state& s, std::int64_t chunk, std::byte* out) const noexcept;

  // tiered_chunk_store.cpp
  status find(sequence_handle sequence, detail::sequence_state** out, const char** what) const noexcept;
  detail::sequence_state* find_or_fail(sequence_handle sequence, status* code) const noexcept;
  status fail(const fault& f) const noexcept;
  status misused() const noexcept;
  void note(const fault& f) const noexcept;
  void tell(store_event_kind kind, std::int64_t sequence, const fault& why = {},
            std::size_t bytes = 0) const noexcept;
  bool owns(sequence_handle sequence) const noexcept;
  void drop_reference(detail::chunk_record& record) noexcept;
  void mark_sealed(detail::chunk_record& record) noexcept;
  void refresh_views(detail::sequence_state& s) noexcept;

  store_options options;
  kv_geometry geometry;
  chunk_layout layout;
  std::size_t chunk_bytes;
  std::size_t layer_bytes;

  std::unique_ptr<detail::fast_tier> tier;
  detail::fast_memory fast;
  detail::slot_pool slots;
  detail::record_pool records;
  detail::sequence_place* places = nullptr;    ///< [max_sequences]
  std::vector<detail::retired_block> retired;  ///< never grows past what was reserved for it
  std::int64_t num_sequences = 0;
  std::int64_t quota_sum = 0;         ///< slots that open sequences may pin
  std::int64_t reserved_records = 0;  ///< chunks that open sequences may have
  std::int64_t sealed_records = 0;
  std::int64_t bad_records = 0;
  std::uint32_t generation_base = 0;  ///< generations of this store's handles lie above it
  std::uint64_t batch_mark = 0;

  mutable std::atomic<std::int32_t> inside{
      0};                   ///< for call_scope: -1 in a call that changes something, n in const ones
  store_counters counters;  ///< `faults` lives below
  // Const calls may run beside each other and fail beside each other.
  mutable std::mutex fault_mutex;
  mutable fault newest_fault;
  mutable std::int64_t faults = 0;
};

}  // namespace v0
}  // namespace flashmemory
