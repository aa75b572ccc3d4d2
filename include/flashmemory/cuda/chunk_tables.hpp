// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/cuda/attend.hpp>
#include <flashmemory/cuda/context.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_reader.hpp>
#include <flashmemory/stream.hpp>
#include <memory>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

namespace detail {
class table_words;
}

/// What device tables are made for.
struct chunk_tables_options {
  std::int64_t rows = 0;           ///< of a step, at most
  std::int64_t max_chunks = 0;     ///< resident chunks of a row, at most
  std::int32_t staging_steps = 4;  ///< steps that the host may be ahead of the device
};

/// Device tables at fixed addresses that say what each row of a step may attend to: what sparse_attend() and captured
/// graphs read. They follow the store's resident sets by update(), which sends only what has changed, so that a
/// refresh, a new chunk or another sequence in a row needs no new capture.
///
/// Calls are made from one thread at a time.
class FLASHMEMORY_API chunk_tables {
 public:
  /// All rows start empty. Synchronises.
  /// \param device  of the chunks: context_of(store), or that of an engine's own cache
  /// \throws argument_error naming the field; admission_error if a memory resource has no room; error with cuda_error
  chunk_tables(const context& device, const chunk_tables_options& options);
  ~chunk_tables();
  chunk_tables(const chunk_tables&) = delete;
  chunk_tables& operator=(const chunk_tables&) = delete;

  /// What it was built with.
  const chunk_tables_options& options() const noexcept;

  /// Rows, [rows], device: each names the list of its row and how many entries it has.
  view<const chunk_row, 1> rows() const noexcept;

  /// Lists of chunk pointers, [rows, max_chunks], contiguous, device. Elements beyond a row's chunks are null or
  /// chunks that the row once had.
  const std::byte* const* lists() const noexcept;

  /// Bytes of device memory.
  std::size_t device_bytes() const noexcept;
  std::size_t pinned_bytes() const noexcept;  ///< of pinned host memory

  /// Bytes of changes that were sent so far.
  std::int64_t bytes_sent() const noexcept;

  /// Makes row i show what items(i) may attend to in `layer`; rows beyond the items, and items with a default
  /// sequence_handle, become empty. A row costs next to nothing while its set keeps its version. If `stream` is not the one
  /// that a tiered_chunk_store was given last, it is made to wait for what that one has queued, so that attention here reads
  /// what has been appended there; appending waits for this stream only if it is given to the store. Enqueued on `stream`:
  /// earlier work sees the old tables, later work the new ones.
  /// Never allocates; never blocks, unless the host is staging_steps ahead of the device. Not to be captured.
  /// \returns bad_shape for more items than rows, budget_exceeded (expected, actual) for more chunks than max_chunks,
  ///     timed_out if the device is still behind at the context's deadline, unsupported for stream_ref::host(), cuda_error, what
  ///     resident() returns. On error the tables are unchanged
  status update(const chunk_reader& reader, batch items, std::int32_t layer, stream_ref stream,
                fault* error = nullptr) noexcept;

 private:
  friend class decode_step;
  chunk_tables(const context& device, const chunk_tables_options& options, std::int64_t more_words);
  /// What a row shows.
  struct shown_row {
    sequence_handle sequence;
    std::uint64_t version = 0;  ///< of the set that its list shows, 0 = none
    bool unchanged = false;     ///< since the step before
    resident_set set;
  };
  status set_rows(const chunk_reader& reader, batch items, std::int32_t layer, fault* error) noexcept;
  context device_;
  chunk_tables_options options_;
  std::vector<shown_row> shown_;
  std::unique_ptr<detail::table_words> words_;
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
