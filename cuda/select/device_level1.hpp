// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/device_indexer.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <memory>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/select/kernels.hpp"
#include "cuda/select/key_encoders.hpp"
#include "src/select/level1.hpp"
#include "src/select/served_sequence.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

using flashmemory::detail::kept_row;
using flashmemory::detail::level1;
using flashmemory::detail::level1_context;
using flashmemory::detail::observed_rows;
using flashmemory::detail::served_sequence;

/// What a decode step knows of its rows, in device memory.
struct step_rows {
  const std::int64_t* places = nullptr;     ///< [rows], -1 = empty
  const std::int64_t* positions = nullptr;  ///< [rows] of the first token
  std::int32_t rows = 0, tokens = 0;
  const append_target* keys = nullptr;  ///< [lanes][rows * index_keys_per_row]
  std::int32_t index_keys_per_row = 0;
};

/// Rows in device memory; all due sequences of a step scored by one call of a device_indexer, one score per chunk copied to
/// pinned memory.
///
/// Everything is queued on the stream of the call, so that rows, keys and scores need no fences among each other as
/// long as the engine uses one stream, or joins its streams as it must for its own tensors. The host only polls.
class device_level1 final : public level1 {
 public:
  /// One of the library's own indexers.
  device_level1(const context& device, std::unique_ptr<library_indexer> index, dtype rows);
  /// An engine's own scorer.
  device_level1(const context& device, device_indexer& index, dtype rows);

  const indexer_taps& taps() const noexcept override { return index_.taps(); }
  const void* device() const noexcept override { return &device_; }
  void set_up(const level1_context& context) override;
  void reserve_chunks() override;
  void open_place(served_sequence&) override {}
  std::size_t row_bytes() const noexcept override;
  status observe(view<const observed_rows, 1> rows_of, std::int32_t layer, tap_kind kind,
                 const_tensor<3> rows, stream_ref stream, std::int64_t* nan_keys,
                 fault* error) noexcept override;
  void copy_rows(const served_sequence& from, served_sequence& to) override;
  void read_row(const served_sequence& s, kept_row row, float* out) override;
  void write_row(served_sequence& s, kept_row row, const float* values) override;
  std::int64_t more_nan_keys() const noexcept override;
  status start(view<served_sequence* const, 1> due, stream_ref stream, fault* error) noexcept override;
  status poll(served_sequence& s, fault* error) noexcept override;
  status wait(served_sequence& s, fault* error) noexcept override;
  view<const float, 1> scores(const served_sequence& s) const noexcept override;

  /// Kernel launches only: keeps a decode step's rows of one layer and encodes the keys that they complete.
  status observe_step(const step_rows& step, std::int32_t layer, tap_kind kind, const_tensor<3> rows,
                      stream_ref stream, fault* error) noexcept;
  /// The books of such a step, for one of its sequences: of the layers marked in `observed`, [kinds of taps, layers].
  void advance_step(served_sequence& s, std::int64_t position, std::int64_t tokens,
                    const std::uint8_t* observed) const noexcept;
  /// Width of a layer's rows of that kind; negative if no tap reads them.
  std::int64_t width_of(std::int32_t layer, tap_kind kind) const noexcept;

  bool encodes_keys() const noexcept { return encoders_ != nullptr; }
  /// Largest step whose rows fit the rings besides what must stay.
  std::int64_t most_step_tokens() const noexcept;
  unsigned long long* nan_counter() const noexcept { return nan_keys_.as<unsigned long long>(); }

 private:
  /// Sent to the device with each start().
  struct launch_list {
    std::int64_t* places = nullptr;     ///< [n]
    std::int64_t* positions = nullptr;  ///< [n]
    std::int64_t* oldest = nullptr;     ///< [query sources, max_sequences]: token whose row is there
    std::byte* table = nullptr;         ///< of the indexer
  };
  /// Where a place's newest scores come from.
  struct scored_place {
    std::size_t part = 0;          ///< of the ring
    std::uint64_t generation = 0;  ///< of that part then; another one means that it is long over
    fault failure;                 ///< if its code says so there are none
  };
  std::size_t list_bytes() const noexcept;
  launch_list list_at(std::byte* base) const noexcept;
  void check_taps() const;
  float* scores_of(const memory_block& block, std::int32_t place) const noexcept;
  status check_rows(const const_tensor<3>& rows, fault* error) const noexcept;
  status keep(view<const observed_rows, 1> rows_of, const kept_rows& kept, const row_tensor& from,
              cudaStream_t stream, fault* error) noexcept;
  status encode(const observed_rows& part, std::size_t source, const row_tensor& from, stream_ref stream,
                fault* error) noexcept;
  status enqueue_scores(const launch_list& device, device_scoring call, stream_ref stream,
                        fault* error) noexcept;
  status answer(cudaError_t code, const served_sequence& s, fault* error) const noexcept;
  void settle(const char* purpose) const;
  std::byte* row_address(const served_sequence& s, kept_row row, std::size_t* bytes) const noexcept;

  context device_;
  dtype rows_type_;
  std::unique_ptr<library_indexer> own_index_;  ///< null if it is the engine's
  device_indexer& index_;
  std::unique_ptr<key_encoders> encoders_;  ///< null if index keys are the engine's
  const level1_context* context_ = nullptr;

  memory_block rows_, gathered_block_, lists_, staging_, key_staging_;
  memory_block device_scores_, pinned_scores_;  ///< [max_sequences, scores_stride_]
  std::int64_t scores_stride_ = 0;
  memory_block nan_keys_,
      nan_copy_;  ///< the device's counter of keys that were no numbers, and what start() last saw of it
  std::vector<kept_rows> query_rows_, key_rows_;
  std::vector<std::byte*> gathered_;  ///< per query source [max_sequences, tokens, width]
  std::vector<event> fences_;         ///< of the parts of staging_
  std::vector<std::uint64_t> generations_;
  std::size_t part_ = 0;
  std::vector<scored_place> scored_;            ///< per place
  std::vector<served_sequence*> good_;          ///< of start()
  std::vector<device_score_request> requests_;  ///< likewise
  std::vector<const_tensor<2>> queries_;        ///< per query tap
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
