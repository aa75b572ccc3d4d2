// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <flashmemory/cuda/store.hpp>
#include <memory>
#include <mutex>

#include "cuda/store/lane.hpp"
#include "cuda/store/pinned_records.hpp"
#include "cuda/store/row_kernels.hpp"
#include "cuda/store/transfer.hpp"
#include "src/store/fast_tier.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

using flashmemory::detail::chunk_record;
using flashmemory::detail::fast_memory;
using flashmemory::detail::fast_slot;
using flashmemory::detail::row_span;

/// Slots in device memory. Three streams: the caller's, on which rows are written and attention reads; one for
/// copies into slots; one for copies out of them. What keeps them apart:
///
/// - a copy into a slot comes after everything that was queued on the caller's stream when it was asked for, so after
///   every reader of a slot that is free by then, and after all copies out that were asked for before. Urgent copies
///   go on the caller's stream itself if no others are under way, which saves the host and the device a hand-over
///   between streams;
/// - a copy out of a slot comes after everything queued on the caller's stream, so after its writers;
/// - who writes a slot on the caller's stream comes after the copies into it and out of it (fast_slot::loads, saves).
class device_tier final : public flashmemory::detail::fast_tier {
 public:
  /// \throws as make_store()
  device_tier(const kv_geometry& geometry, const context& device, const device_store_options& options);
  ~device_tier() override;

  void use(std::unique_ptr<transfer> copies) noexcept { copies_ = std::move(copies); }

  memory_resource memory() const noexcept override;
  bool host_memory() const noexcept override { return false; }
  const void* device() const noexcept override { return &context_; }
  std::size_t workspace_bytes() const noexcept override { return std::size_t(num_pieces_) * layer_bytes_; }
  std::int64_t initial_slots() const noexcept override { return options_.initial_slots; }
  void open_backing(const store_options& options, std::int64_t records,
                    std::unique_ptr<backing_store> own) override;
  bool set_up(fast_memory& memory) noexcept override;
  void tear_down(fast_memory& memory) noexcept override;
  bool reserve_records(std::int64_t records) noexcept override;
  bool idle() noexcept override;
  void shut_down() noexcept override;
  const char* allocation_failure() noexcept override { return failure_; }
  fault enter(stream_ref stream) noexcept override;
  fault leave(stream_ref stream) noexcept override;
  void poison(fast_slot& slot) noexcept override;
  void prepare(fast_slot& slot) noexcept override;
  fault scrub(fast_slot& slot, std::int64_t first_entry) noexcept override;
  fault order(stream_ref stream) const noexcept override;

  void begin_rows() noexcept override;
  fault write_rows(const row_span& span, const const_tensor<3>& k,
                   const const_tensor<3>& v) noexcept override;
  fault flush_rows(std::int32_t layer, const const_tensor<3>& k, const const_tensor<3>& v) noexcept override;
  fault seal(chunk_record& record) noexcept override;

  void begin_loads(bool urgent) noexcept override;
  fault load(const chunk_record& from, fast_slot& slot) noexcept override;
  fault flush_loads(std::uint64_t* ticket) noexcept override;
  fault loaded(std::uint64_t ticket) noexcept override;
  fault await_loads(std::uint64_t ticket) noexcept override;

  fault write_record(chunk_record& record, const std::byte* chunk) noexcept override;
  fault read_record(const chunk_record& record, std::byte* chunk) const noexcept override;
  fault read_piece(const chunk_record& record, std::int32_t layer, std::byte* piece) const noexcept override;
  const std::byte* piece_address(const chunk_record& record, std::int32_t layer) const noexcept override {
    return staged() ? nullptr : pinned_[record.backing] + layout_.key_offset(layer, 0);
  }
  fault copy_slot(fast_slot& to, const fast_slot& from) noexcept override;
  fault copy_keys(std::byte* to, const std::byte* from, std::size_t bytes) noexcept override;
  fault read_slot(const fast_slot& slot, std::byte* chunk) const noexcept override;
  fault write_slot(fast_slot& slot, const std::byte* chunk) noexcept override;
  fault append_index_keys(std::byte* pages, std::int64_t first_key,
                          const view<const std::byte, 2>& keys) noexcept override;

 private:
  /// Of the pieces of whole chunks on their way to the backing store without a slot.
  struct outgoing_piece {
    chunk_record* record;
    std::int64_t piece;
    std::int32_t layer;
  };

  memory_resource pinned_memory() const;
  void give_up() noexcept;
  fault check(cudaError_t code, const char* what) const noexcept;
  cudaError_t follow_compute(cudaStream_t lane) const noexcept;
  cudaError_t fence(const fast_slot& slot) noexcept;
  cudaError_t start_loads() noexcept;
  cudaError_t save(copy_span* spans, std::int64_t count, std::size_t bytes) noexcept;
  fault save_staged(const std::byte* from, chunk_record& record, std::int32_t first_layer,
                    std::int32_t num_layers) noexcept;
  fault save_pieces() noexcept;
  fault flush_saves() noexcept;
  void checksum_layers(chunk_record& record, const std::byte* data, std::int32_t first,
                       std::int32_t count) const noexcept;
  fault verify(const chunk_record& record, const std::byte* data, std::int32_t first,
               std::int32_t count) const noexcept;
  bool staged() const noexcept { return backing_ != nullptr; }

  context context_;
  device_store_options options_;
  memory_resource backing_memory_;  ///< pinned
  chunk_layout layout_;
  std::size_t chunk_bytes_, layer_bytes_;
  std::int64_t num_pieces_;
  std::unique_ptr<transfer> copies_;

  // Waiting changes what is known of the lanes, not what the tier holds.
  mutable copy_lane in_, out_;
  mutable std::mutex read_mutex_;  ///< const calls may come from several threads
  mutable cudaEvent_t compute_event_ = nullptr;
  cudaStream_t compute_ = nullptr;
  std::uint64_t compute_saw_in_ = 0, compute_saw_out_ = 0, in_saw_out_ = 0;

  pinned_records pinned_;
  std::unique_ptr<backing_store> backing_;  ///< null: records are in `pinned_`
  bool verify_ = false;
  bool stuck_ = false;  ///< the device did not finish in time: what it has is lost

  std::byte* pieces_ = nullptr;  ///< [num_pieces_][layer bytes] device
  std::array<std::uint64_t, 64> piece_saves_{};
  std::int64_t next_piece_ = 0;
  row_target targets_[max_row_targets] = {};
  int num_targets_ = 0;
  std::array<outgoing_piece, 64> outgoing_{};
  std::int64_t num_outgoing_ = 0;

  std::byte* staging_ = nullptr;  ///< [num_staging_][chunk bytes] pinned
  std::int64_t num_staging_ = 0, next_staging_ = 0;
  std::array<std::uint64_t, 64> staging_loads_{};

  std::array<copy_span, max_group_spans> loads_{};
  std::int64_t num_loads_ = 0;
  std::int64_t loads_begun_ = 0,
               start_at_ = 0;  ///< enqueued in this group; collected before more are enqueued
  bool urgent_ = false;
  cudaStream_t loads_stream_ = nullptr;  ///< of this group: the lane's or the caller's
  bool loads_started_ = false;           ///< in this group, without a mark behind them yet
  std::array<copy_span, max_group_spans> saves_{};
  std::array<chunk_record*, max_group_spans> saved_{};
  std::int64_t num_saves_ = 0;

  char failure_[96] = "";
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
