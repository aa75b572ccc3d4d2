// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/error.hpp>
#include <flashmemory/select/selector.hpp>
#include <limits>
#include <memory>
#include <vector>

#include "select/buffer.hpp"
#include "select/row_ring.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Distinct vectors that the indexer's query side reads; several taps may name the same one.
struct query_source {
  std::int32_t layer = 0;
  tap_kind kind = tap_kind::hidden;
  std::int64_t width = 0;
};

/// Hidden states that one or more key streams are made from.
struct key_source {
  std::int32_t layer = 0;
  std::int64_t width = 0;
  std::int64_t window = 0;  ///< of the stream that sees most
  std::vector<std::int32_t> streams;
};

/// The key encoder's input: one ring per key_source. `torn` says that an append failed between streams, so
/// that some hold keys of tokens that the ring does not.
struct key_input {
  row_ring ring;
  bool torn = false;
};

/// All that is kept for one sequence.
struct served_sequence {
  sequence_handle handle;
  bool active = false;
  bool own_policy = false;
  selection_policy policy;
  std::int64_t max_tokens = 0;
  std::int64_t quota = 0;  ///< slots it may pin, never 0

  bool started = false;         ///< its warm start was tried
  bool requested = false;       ///< request_refresh()
  std::int64_t processed = 0;   ///< tokens at the last select_chunks()
  std::int64_t refreshed = 0;   ///< tokens at the last try
  std::int64_t next_due = 0;    ///< tokens from which on it is due
  std::uint64_t last_call = 0;  ///< finds duplicates in a batch

  fallback_stage stage = fallback_stage::normal;
  std::int32_t calls = 0;                               ///< refreshes in a row that called for more
  std::int32_t calm = 0;                                ///< refreshes in a row that did not
  float mass = std::numeric_limits<float>::infinity();  ///< smallest reported since the last refresh
  selection_report report;

  buffer memory;
  std::vector<row_ring> queries;  ///< per query_source
  std::vector<key_input> keys;    ///< per key_source
};

}  // namespace detail

struct selector::impl {
  impl(chunk_store& store, indexer& index, const selection_policy& policy, const selector_options& options);

  /// Tokens of a query source that are kept: the newest token is only known after speculative ones were
  /// rejected.
  static constexpr std::int64_t query_rows = 8;

  /// Keys that are encoded at a time, which bounds the scratch memory of a long prompt.
  static constexpr std::int64_t key_block = 64;

  chunk_store& store;
  indexer& index;
  selection_policy policy;
  selector_options options;
  kv_geometry geometry;
  std::int64_t max_chunks = 0;

  std::vector<detail::query_source> query_sources;
  std::vector<std::int32_t> source_of_tap;  ///< query tap -> query source
  std::vector<detail::key_source> key_sources;

  std::vector<std::unique_ptr<detail::served_sequence>> pool;
  std::vector<std::int32_t> by_index;  ///< sequence_handle::index -> place in pool, -1 = not attached

  detail::buffer memory;
  view<float, 1> scores;
  view<std::uint8_t, 1> resident;
  view<chunk_id, 1> kept;
  view<chunk_id, 1> order;
  float* key_rows = nullptr;     ///< a block's hidden states, gathered
  std::byte* key_out = nullptr;  ///< a block's keys
  workspace scratch;
  std::vector<const float*> tap_rows;

  std::int64_t scored_chunks = 0;
  std::uint64_t call = 0;
  selector_counters counters;
  mutable fault last_fault;

  status fail(const fault& f) const noexcept {
    last_fault = f;
    return f.code;
  }
  status fail(status code, sequence_handle sequence, const char* what) const noexcept;
  /// After a call to the store that returned `code`.
  status store_failed(status code, sequence_handle sequence, const char* what) const noexcept;

  std::size_t row_floats() const noexcept;
  detail::served_sequence* find(sequence_handle sequence) const noexcept;
  status check_handle(sequence_handle sequence, detail::served_sequence** out) const noexcept;
  /// Handles, positions, lengths and duplicates of a batch; sums its tokens.
  status check_items(batch items, std::int64_t* tokens) noexcept;

  /// A record for `sequence`, not active yet. Everything that may throw happens here.
  detail::served_sequence& prepare(sequence_handle sequence, const sequence_info& info,
                                   const selection_policy& use);
  void activate(detail::served_sequence& s) noexcept;
  void deactivate(detail::served_sequence& s) noexcept;
  sequence_info open_info(sequence_handle sequence) const;

  status observe(batch items, std::int32_t layer, tap_kind kind, const_tensor<2> rows) noexcept;
  status check_key_order(const detail::served_sequence& s, std::size_t source,
                         const batch_item& item) const noexcept;
  status encode(detail::served_sequence& s, std::size_t source, const batch_item& item, const_tensor<2> rows,
                std::int64_t from) noexcept;

  status step(batch items) noexcept;
  status refresh(detail::served_sequence& s, refresh_reason reason) noexcept;
  status score(detail::served_sequence& s, std::int64_t chunks) noexcept;
  status mark_resident(const detail::served_sequence& s, std::int64_t chunks) noexcept;
  selection_plan plan_with_fallback(detail::served_sequence& s, std::int64_t chunks,
                                    std::int64_t* budget) noexcept;
  std::int64_t stage_budget(const detail::served_sequence& s, fallback_stage stage,
                            std::int64_t chunks) const noexcept;
  std::int64_t slots_for_recall(const detail::served_sequence& s) const noexcept;
  std::int64_t steps_to_first_refresh(const detail::served_sequence& s) const noexcept;
};

}  // namespace v0
}  // namespace flashmemory
