// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/indexer/indexer.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace detail {

struct served_sequence;

/// Distinct vectors that the indexer's query side reads; several taps may name the same one.
struct query_source {
  std::int32_t layer = 0;
  tap_kind kind = tap_kind::hidden;
  std::int64_t width = 0;
  std::int64_t tokens = 1;  ///< of the tap that sees most
};

/// Vectors of one layer that one or more index-key lanes are made from.
struct key_source {
  std::int32_t layer = 0;
  tap_kind kind = tap_kind::hidden;
  std::int64_t width = 0;
  std::int64_t window = 0;  ///< of the lane that sees most
  std::vector<std::int32_t> lanes;
};

/// Kinds of taps that there are.
inline constexpr std::size_t tap_kinds = 3;

/// Rows of one head.
inline const_tensor<3> one_head(const_tensor<2> rows) noexcept {
  const_tensor<3> out;
  out.data = rows.data;
  out.type = rows.type;
  out.shape[0] = rows.shape[0];
  out.shape[1] = 1;
  out.shape[2] = rows.shape[1];
  out.stride[0] = rows.stride[0];
  out.stride[1] = rows.shape[1];
  out.stride[2] = rows.stride[1];
  return out;
}

/// The name of what a tap reads, for messages.
inline const char* name_of(tap_kind kind) noexcept {
  return kind == tap_kind::hidden ? "hidden states" : kind == tap_kind::queries ? "queries" : "keys";
}

/// The call of a selector that brings it.
inline const char* call_of(tap_kind kind) noexcept {
  return kind == tap_kind::hidden    ? "observe"
         : kind == tap_kind::queries ? "observe_queries"
                                     : "observe_keys";
}

/// What a level 1 has to know of its selector; outlives it.
struct level1_context {
  level1_context(chunk_store& s, const selector_options& o) : store(s), geometry(s.geometry()), options(o) {}

  /// Newest tokens one of which turns out to be the last: it is only known after speculative ones were rejected.
  static constexpr std::int64_t newest_rows = 8;

  /// Rows of a query source that are kept.
  static std::int64_t query_rows(const query_source& source) noexcept {
    return newest_rows - 1 + source.tokens;
  }

  /// Rows of a key source that are kept.
  std::int64_t key_rows(const key_source& source) const noexcept {
    return source.window + options.max_rollback_tokens;
  }

  chunk_store& store;
  kv_geometry geometry;
  selector_options options;
  std::int64_t max_chunks = 0;  ///< of the longest sequence that was attached; grows
  std::vector<query_source> query_sources;
  std::vector<std::int32_t> source_of_tap;  ///< query tap -> query source
  std::vector<key_source> key_sources;
};

/// A sequence's part of an observe() call.
struct observed_rows {
  served_sequence* sequence = nullptr;
  std::int64_t position = 0;
  std::int64_t tokens = 0;
  std::int64_t from = 0;  ///< first row
};

/// Names one row that is kept of a sequence.
struct kept_row {
  bool key = false;        ///< of a key source, else of a query source
  std::size_t source = 0;  ///< in the context's list
  std::int64_t token = 0;
};

/// Where a selector's vectors are kept and its scores are made: the part of it that a backend replaces. Books - which
/// rows there are, when a sequence is due, what the policy keeps - stay with the selector. Step calls never allocate;
/// on error they describe it in `error`.
class level1 {
 public:
  virtual ~level1() = default;
  level1(const level1&) = delete;
  level1& operator=(const level1&) = delete;

  /// What it reads; the same at all times.
  virtual const indexer_taps& taps() const noexcept = 0;

  /// The device that it works on, in the words of a backend that has one; null = the host.
  virtual const void* device() const noexcept { return nullptr; }

  /// Once, before anything else. May throw.
  virtual void set_up(const level1_context& context) = 0;

  /// Makes room for sequences of up to context.max_chunks chunks, which has grown. May throw, and then nothing has changed;
  /// waits for what is under way.
  virtual void reserve_chunks() = 0;

  /// Makes room for a sequence in a place, [0, max_sequences), that was never used. May throw.
  virtual void open_place(served_sequence& s) = 0;

  /// Bytes that are kept of one sequence's rows.
  virtual std::size_t row_bytes() const noexcept = 0;

  /// Keeps the rows of a batch that its sources read, encodes and appends the keys that they complete, and moves the
  /// rings of the sequences on. Everything has been checked.
  /// \param rows  [tokens, heads, width / heads], one head for hidden states
  virtual status observe(view<const observed_rows, 1> rows_of, std::int32_t layer, tap_kind kind,
                         const_tensor<3> rows, stream_ref stream, std::int64_t* nan_keys,
                         fault* error) noexcept = 0;

  /// For set-up calls, which may wait: the rows of one sequence for another one, one row to the host, one from it.
  virtual void copy_rows(const served_sequence& from, served_sequence& to) = 0;
  virtual void read_row(const served_sequence& s, kept_row row, float* out) = 0;
  virtual void write_row(served_sequence& s, kept_row row, const float* values) = 0;

  /// Keys that were no numbers and that observe() could not yet count.
  virtual std::int64_t more_nan_keys() const noexcept { return 0; }

  /// Starts to score the first flight.chunks chunks of each sequence by its rows up to token flight.position. pending if
  /// that is not possible now without blocking; only in overlapped mode.
  virtual status start(view<served_sequence* const, 1> due, stream_ref stream, fault* error) noexcept = 0;

  /// Whether a sequence's scores are there: ok, pending, or why there will be none. Never blocks.
  virtual status poll(served_sequence& s, fault* error) noexcept = 0;

  /// As poll(), after waiting for options.deadline at most; then timed_out.
  virtual status wait(served_sequence& s, fault* error) noexcept = 0;

  /// Scores of a sequence once they are there, [flight.chunks]; valid until it is scored again.
  virtual view<const float, 1> scores(const served_sequence& s) const noexcept = 0;

 protected:
  level1() = default;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
