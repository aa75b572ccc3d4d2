// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Largest k of select_top_k().
inline constexpr std::int32_t max_top_k = 2048;

/// One row of scores to select from. Rows lie in device memory and are read when the kernels run, so that a
/// captured graph sees new lengths and pointers. All pointers are device pointers.
struct select_row {
  const float* scores = nullptr;     ///< [count]; 16-byte alignment helps
  const float* group_max = nullptr;  ///< [ceil(count / 16)] from score(), or null
  std::int64_t count = 0;            ///< at most 2^30
  std::int32_t k = 0;           ///< for select_top_k(): how many, at most max_top_k; more are not selected
  float threshold = 0;          ///< for select_above()
  std::int32_t* ids = nullptr;  ///< [k], or [capacity] for select_above(): what was selected, ascending
  std::int32_t* selected = nullptr;  ///< [1] or null: how many; elements of `ids` beyond it are not written
  /// [1] or null: how many NaNs `scores` has. Asking makes long rows slow: all of it is read by one block.
  std::int32_t* nans = nullptr;
  std::int64_t capacity = 0;  ///< for select_above(): elements of `ids`
  const std::int64_t* device_count =
      nullptr;                ///< [1] if not null read instead of `count`, e.g. chunk_row::entries
  std::int32_t first_id = 0;  ///< added to every id: the number of score 0 in a numbering that rows share
};

/// Bytes of device workspace that select_top_k() needs for `num_rows` rows of at most `max_count` scores,
/// none of which brings a group_max; 0 if all of them do.
FLASHMEMORY_API std::size_t top_k_workspace_bytes(std::int32_t num_rows, std::int64_t max_count) noexcept;

/// Selects each row's min(k, count) largest scores. Of equal scores (0 and -0 are) the newer one, with the
/// higher index, goes first; NaN comes after everything, -inf included. Exact and deterministic.
///
/// A row without group_max that is longer than 16384 scores needs its share of the workspace, which costs
/// another launch: pass none, and max_count 0, where all rows have one.
///
/// On compute capability 9.0 two to eight blocks share a row, the fewer the more rows; elsewhere one has it.
/// Enqueues and returns; never allocates or synchronises; may be captured.
///
/// \param[in]  rows      [num_rows], device
/// \param      num_rows  at most 65535
/// \param      max_count no row that has no group_max is longer
/// \param      scratch   device, 16-byte aligned, top_k_workspace_bytes(num_rows, max_count)
/// \param      stream    not the host
/// \param[out] error     details if the call fails; may be null
/// \returns bad_argument, null_data, workspace_small, unsupported for stream_ref::host(), cuda_error
FLASHMEMORY_API status select_top_k(const select_row* rows, std::int32_t num_rows, std::int64_t max_count,
                                    workspace scratch, stream_ref stream, fault* error = nullptr) noexcept;

/// Selects each row's scores that are > threshold, which NaN never is; row.selected says how many there are
/// even if they are more than row.capacity. One block goes over each row: meant for rows of chunk scores;
/// score() has the same for keys. Otherwise as select_top_k().
/// \param[in]  rows     [num_rows], device
/// \param      num_rows rows
/// \param      stream   not the host
/// \param[out] error    details if the call fails; may be null
/// \returns bad_argument, null_data, unsupported for stream_ref::host(), cuda_error
FLASHMEMORY_API status select_above(const select_row* rows, std::int32_t num_rows, stream_ref stream,
                                    fault* error = nullptr) noexcept;

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
