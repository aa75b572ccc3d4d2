// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/query_encoder.hpp>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <optional>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/select/kernels.hpp"
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

/// The taps of a dual encoder, without its weights in host memory.
class tap_list final : public indexer {
 public:
  explicit tap_list(const dual_encoder_config& config);

  const char* name() const noexcept override { return "dual_encoder"; }
  view<const query_tap, 1> query_taps() const noexcept override {
    return view<const query_tap, 1>(query_taps_.data(), query_taps_.size());
  }
  view<const key_tap, 1> key_taps() const noexcept override {
    return view<const key_tap, 1>(key_taps_.data(), key_taps_.size());
  }
  std::int32_t key_streams() const noexcept override { return retrievers_; }
  bool log_odds() const noexcept override { return log_odds_; }
  std::size_t workspace_bytes(const kv_geometry&, std::int64_t, std::int64_t) const noexcept override {
    return 0;
  }
  status encode_keys(std::int32_t, view<const float, 2>, view<std::byte, 2>, workspace,
                     thread_hook) const noexcept override {
    return status::unsupported;
  }
  status score(const score_request&, view<float, 1>, workspace, thread_hook, stream_ref) noexcept override {
    return status::unsupported;
  }

  /// Query tap of a retriever.
  std::int32_t tap_of(std::int32_t retriever) const { return tap_of_[std::size_t(retriever)]; }

 private:
  std::vector<query_tap> query_taps_;
  std::vector<key_tap> key_taps_;
  std::vector<std::int32_t> tap_of_;
  std::int32_t retrievers_;
  bool log_odds_;
};

/// What a decode step knows of its rows, in device memory.
struct step_rows {
  const std::int64_t* places = nullptr;     ///< [rows], -1 = empty
  const std::int64_t* positions = nullptr;  ///< [rows] of the first token
  std::int32_t rows = 0, tokens = 0;
  const append_target* keys = nullptr;  ///< [key_streams][rows * keys_per_row]
  std::int32_t keys_per_row = 0;
};

/// Rows in device memory; queries of all due sequences encoded in one call, scored in one launch over the index keys in
/// the store's fast tier, one score per chunk copied to pinned memory.
///
/// Everything is queued on the stream of the call, so that rows, keys and scores need no fences among each other as
/// long as the engine uses one stream, or joins its streams as it must for its own tensors. The host only polls.
class device_level1 final : public level1 {
 public:
  device_level1(const dual_encoder_config& config, const selector_device_options& device);

  indexer& index() noexcept override { return taps_; }
  void set_up(const level1_context& context) override;
  void open_place(served_sequence&) override {}
  std::size_t row_bytes() const noexcept override;
  status observe(view<const observed_rows, 1> rows_of, std::int32_t layer, tap_kind kind,
                 const_tensor<2> rows, stream_ref stream, std::int64_t* nan_keys,
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
  status observe_step(const step_rows& step, std::int32_t layer, const_tensor<2> rows, stream_ref stream,
                      fault* error) noexcept;
  /// The books of such a step, for one of its sequences: of the layers marked in `observed`, [layers].
  void advance_step(served_sequence& s, std::int64_t position, std::int64_t tokens,
                    const std::uint8_t* observed) const noexcept;
  /// Width of a layer's hidden states; negative if no tap reads it.
  std::int64_t width_of(std::int32_t layer) const noexcept;

  std::int32_t device() const noexcept { return options_.device; }
  bool encodes_keys() const noexcept { return taps_.key_taps().shape[0] > 0; }
  /// Largest step whose rows fit the rings besides what must stay.
  std::int64_t most_step_tokens() const noexcept;
  unsigned long long* nan_counter() const noexcept { return nan_keys_.as<unsigned long long>(); }

 private:
  /// Sent to the device with each start().
  struct launch_list {
    score_job* jobs = nullptr;          ///< [retrievers * n]
    std::int64_t* places = nullptr;     ///< [n]
    std::int64_t* positions = nullptr;  ///< [n]
  };
  /// Where a place's newest scores come from.
  struct scored_place {
    std::size_t part = 0;          ///< of the ring
    std::uint64_t generation = 0;  ///< of that part then; another one means that it is long over
    fault failure;                 ///< if its code says so there are none
  };
  std::size_t list_bytes() const noexcept;
  launch_list list_at(std::byte* base) const noexcept;
  void load_kernels();
  key_encoder encoder_of(std::int32_t key_stream) const noexcept;
  status check_rows(const const_tensor<2>& rows, fault* error) const noexcept;
  status keep(view<const observed_rows, 1> rows_of, const kept_rows& kept, const hidden_tensor& from,
              cudaStream_t stream, fault* error) noexcept;
  status encode(const observed_rows& part, std::size_t source, const hidden_tensor& from, stream_ref stream,
                fault* error) noexcept;
  status enqueue_scores(const launch_list& host, const launch_list& device, std::int64_t count,
                        stream_ref stream, fault* error) noexcept;
  status answer(cudaError_t code, const served_sequence& s, fault* error) const noexcept;
  std::byte* row_address(const served_sequence& s, kept_row row, std::size_t* bytes) const noexcept;

  dual_encoder_config config_;  ///< without the query side's weights
  selector_device_options options_;
  tap_list taps_;
  std::optional<query_encoder> encoder_;
  const level1_context* context_ = nullptr;
  bool fused_ = true;  ///< scoring itself makes chunk scores

  memory_block rows_, weights_, scratch_, lists_, staging_, device_scores_, pinned_scores_, nan_keys_,
      nan_copy_;  ///< the device's counter of keys that were no numbers, and what start() last saw of it
  std::vector<kept_rows> query_rows_, key_rows_;
  std::vector<std::byte*> gathered_;       ///< per query source [max_sequences, width]
  std::vector<const float*> key_weights_;  ///< per key stream
  encoded_queries encoded_;
  workspace encode_scratch_;
  float* logits_ = nullptr;  ///< [retrievers, logit_stride_], only if not fused
  std::int64_t logit_stride_ = 0;
  std::byte* key_staging_ = nullptr;  ///< [key_block, 132]
  std::vector<event> fences_;         ///< of the parts of staging_
  std::vector<std::uint64_t> generations_;
  std::size_t part_ = 0;
  std::vector<scored_place> scored_;     ///< per place
  std::vector<served_sequence*> good_;   ///< of start()
  std::vector<const_tensor<2>> hidden_;  ///< per retriever
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
