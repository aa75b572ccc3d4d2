// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/memory.hpp>
#include <flashmemory/store/backing_store.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <flashmemory/store/store_events.hpp>
#include <memory>
#include <string>

namespace flashmemory {
inline namespace v0 {

namespace detail {
class fast_tier;
struct store_access;
}  // namespace detail

/// Budgets and tiers of a tiered_chunk_store.
struct store_options {
  kv_geometry geometry;

  /// Fast-tier budget: slots, index keys, tables and the transition pool together. Where the backing store is host memory
  /// attention reads resident chunks there: slots then take nothing, but count all the same.
  std::size_t fast_bytes = 0;
  std::size_t backing_bytes = 0;  ///< backing-store budget
  std::int32_t max_sequences = 64;

  /// Where the backing store lies: empty = host memory, else a file beside this path, which must not exist. The file
  /// has no name and belongs to this store alone; see make_file_backing().
  std::string backing_path;
  /// Take the disk's space of a sequence when it is opened, so that a disk that is full refuses open() and no later
  /// step. It stays taken until the store goes. Without it the file is sparse.
  bool reserve_backing = true;

  /// Slots beyond the sequences' quotas through which a resident set is exchanged: as many chunks can be new
  /// at one refresh. 0 = as many as the largest quota of an open sequence, so that none is ever refused. At
  /// least recent_chunks + 1, for truncate(). Sequences that are resident as a whole need none.
  std::int64_t transition_chunks = 0;

  /// Verify checksums on every recall: media that ask for it (files) always are; this adds host memory.
  bool verify_ram = false;

  /// Zeroes every slot before its first entry is written, and in a fork what lies behind the copied entries, so that
  /// behind a chunk's readable end there is never what another sequence has left there. Costs the writing of each new
  /// chunk once more; advised where sequences of several tenants share a process.
  bool scrub = false;

  store_event_hook events;

  memory_resource memory = default_memory();
};

/// What a store's tiers take.
struct store_bytes {
  std::size_t fast = 0;     ///< for store_options::fast_bytes
  std::size_t backing = 0;  ///< for store_options::backing_bytes
};

/// The budgets with which a store of `options` can hold `sequences` sequences of `each` at a time, to the byte: slots of
/// their quotas and of the transition pool, index keys, tables. The budgets in `options` are not looked at; max_sequences
/// counts. That is of a store in host memory; what a device's tier needs besides - staging, slots that come in blocks - its
/// admission_error spells out.
/// \throws argument_error as a store and its open() would
FLASHMEMORY_API store_bytes store_bytes_for(const store_options& options, const sequence_options& each,
                                            std::int32_t sequences);

/// The chunk_store of both backends. Built from options alone it is the CPU backend's: slots live in host memory
/// from options.memory, the backing store in host memory or a file. cuda::make_store() builds one whose slots
/// live in device memory. Fast tier and backing store both keep within their budgets at all times; admission is
/// checked in open().
class FLASHMEMORY_API tiered_chunk_store final : public chunk_store {
 public:
  /// \throws argument_error naming the field; admission_error if one chunk does not fit; io_failure for the
  /// file
  explicit tiered_chunk_store(const store_options& options);

  /// With a backing store of the engine's own, which must have room for backing_bytes / chunk bytes records.
  tiered_chunk_store(const store_options& options, std::unique_ptr<backing_store> backing);

  /// For backends: with a fast tier of theirs, and perhaps a backing store of the engine's.
  tiered_chunk_store(std::unique_ptr<detail::fast_tier> tier, const store_options& options,
                     std::unique_ptr<backing_store> backing);

  ~tiered_chunk_store() override;

  const kv_geometry& geometry() const noexcept override;
  sequence_handle open(const sequence_options& options) override;
  sequence_handle fork(sequence_handle parent, const sequence_options& options) override;
  void set_quota(sequence_handle sequence, std::int64_t max_resident_chunks) override;
  status truncate(sequence_handle sequence, std::int64_t tokens) noexcept override;
  status close(sequence_handle sequence) noexcept override;
  status append(batch items, std::int32_t layer, const_tensor<3> k, const_tensor<3> v,
                stream_ref stream) noexcept override;
  status append_index_keys(sequence_handle sequence, std::int32_t lane, std::int64_t first_key,
                           view<const std::byte, 2> keys, stream_ref stream) noexcept override;
  status recall(sequence_handle sequence, view<const chunk_id, 1> chunks, recall_report* report,
                stream_ref stream) noexcept override;
  status start_recall(sequence_handle sequence, view<const chunk_id, 1> chunks, recall_report* report,
                      stream_ref stream) noexcept override;
  status poll_recall(sequence_handle sequence) noexcept override;
  status finish_recall(sequence_handle sequence, late_policy late, recall_report* report,
                       stream_ref stream) noexcept override;
  status cancel_recall(sequence_handle sequence) noexcept override;
  std::int64_t bad_chunks(sequence_handle sequence, view<chunk_id, 1> out) const noexcept override;
  void guard_rollback(sequence_handle sequence, rollback_guard guard) noexcept override;
  status resident(sequence_handle sequence, std::int32_t layer, resident_set* out,
                  std::uint64_t known = 0) const noexcept override;
  status index_keys(sequence_handle sequence, std::int32_t lane,
                    index_key_pages* out) const noexcept override;
  bool is_open(sequence_handle sequence) const noexcept override;
  fault order(stream_ref stream) const noexcept override;
  status info(sequence_handle sequence, sequence_info* out) const noexcept override;
  status read_chunk(sequence_handle sequence, chunk_id chunk, view<std::byte, 1> out) const noexcept override;
  const std::byte* layer_address(sequence_handle sequence, chunk_id chunk,
                                 std::int32_t layer) const noexcept override;
  status read_layer(sequence_handle sequence, chunk_id chunk, std::int32_t layer,
                    view<std::byte, 1> out) const noexcept override;
  status append_chunk(sequence_handle sequence, view<const std::byte, 1> bytes,
                      std::int64_t tokens) noexcept override;

  status begin_pass(batch items, stream_ref stream) noexcept override;
  status commit_pass(batch items, bool index_keys, stream_ref stream) noexcept override;
  store_counters counters() const noexcept override;
  store_usage usage() const noexcept override;
  fault last_fault() const noexcept override;
  void note(const fault& f) const noexcept override;

 private:
  friend struct detail::store_access;
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace v0
}  // namespace flashmemory
