// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <vector>

#include "src/select/buffer.hpp"
#include "src/select/level1.hpp"
#include "src/select/row_ring.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Rows in host memory, scores by an indexer, made when they are asked for.
class host_level1 final : public level1 {
 public:
  explicit host_level1(indexer& index) noexcept : index_(index) {}

  const indexer_taps& taps() const noexcept override { return index_.taps(); }
  void set_up(const level1_context& context) override;
  void reserve_chunks() override;
  void open_place(served_sequence& s) override;
  std::size_t row_bytes() const noexcept override;
  status observe(view<const observed_rows, 1> rows_of, std::int32_t layer, tap_kind kind,
                 const_tensor<3> rows, stream_ref stream, std::int64_t* nan_keys,
                 fault* error) noexcept override;
  void copy_rows(const served_sequence& from, served_sequence& to) override;
  void read_row(const served_sequence& s, kept_row row, float* out) override;
  void write_row(served_sequence& s, kept_row row, const float* values) override;
  status start(view<served_sequence* const, 1>, stream_ref, fault*) noexcept override { return status::ok; }
  status poll(served_sequence& s, fault* error) noexcept override;
  status wait(served_sequence& s, fault* error) noexcept override { return poll(s, error); }
  view<const float, 1> scores(const served_sequence& s) const noexcept override;

 private:
  /// Overlapped, a sequence's scores may have to wait for its turn to recall while others are scored.
  view<float, 1> scores_of(const served_sequence& s) const noexcept;

  /// Keys that are encoded at a time, which bounds the scratch memory of a long prompt.
  static constexpr std::int64_t key_block = 64;

  status encode(const observed_rows& part, std::size_t source, const_tensor<3> rows, stream_ref stream,
                std::int64_t* nan_keys, fault* error) noexcept;
  view<const float, 2> seen_rows(const observed_rows& part, const row_ring& ring, std::int64_t first,
                                 std::int64_t count, const_tensor<3> rows) noexcept;
  status append_lane(served_sequence& s, std::int32_t lane, std::int64_t first_key, std::int64_t end,
                     std::int64_t source_window, view<const float, 2> rows, stream_ref stream,
                     std::int64_t* nan_keys, fault* error) noexcept;
  const float* newest_rows(const row_ring& ring, std::int64_t position, std::int64_t tokens,
                           float* out) const noexcept;
  status store_failed(status code, const served_sequence& s, const char* what, fault* error) const noexcept;

  indexer& index_;
  const level1_context* context_ = nullptr;
  std::vector<buffer> places_;
  buffer memory_;
  buffer score_memory_;
  view<float, 2> scores_;         ///< [places that wait with theirs, chunks]
  float* key_rows_ = nullptr;     ///< a block's rows, gathered
  float* query_rows_ = nullptr;   ///< of all query sources, gathered
  std::byte* key_out_ = nullptr;  ///< a block's keys
  workspace scratch_;
  std::vector<const float*> tap_rows_;
};

/// A store's fault as the selector's, of this sequence.
fault fault_of_store(const chunk_reader& store, status code, sequence_handle sequence,
                     const char* what) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
