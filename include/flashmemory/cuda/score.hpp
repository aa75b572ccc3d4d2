// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Most query heads of a scoring job.
inline constexpr std::int32_t max_score_heads = 128;

/// Keys whose largest logit is one element of score_job::group_max.
inline constexpr std::int32_t score_group = 16;

/// One query against the index keys of one sequence and stream (target layer): level 1 of one due sequence
/// and retriever, or the lightning indexer of one sequence and layer.
///
///   logit[n] = scale[n] * sum over heads h of weights[h] * relu(queries[h] . keys[n]) + offset
///
/// with keys and queries in e4m3 and the query's scale folded into the weights (dual_encoder.hpp has the
/// formula's source). A key with an e4m3 NaN or a scale that is not finite gets NaN, as on the CPU. Sums are
/// f32; inside a dot the tensor cores drop what is below about 2^-13 of the largest product at hand, so that
/// it may be off by 2^-9 of the sum of its products' magnitudes.
///
/// Jobs lie in device memory, and everything in them is read when the kernels run: a captured graph sees new
/// lengths and pointers. All pointers are device pointers. An output that is null is not wanted.
struct score_job {
  const std::byte* queries = nullptr;  ///< [heads, 128] e4m3, 16-byte aligned
  const float* weights = nullptr;      ///< [heads], may be negative
  const std::byte* keys = nullptr;     ///< pages of keys_per_page keys back to back, 16-byte aligned
  /// [ceil(count / keys_per_page)], if not null instead of `keys`: each page starts pages_offset bytes after its
  /// element, 16-byte aligned. A chunk store's slots hold the index keys of each layer at such an offset.
  const std::byte* const* pages = nullptr;
  /// keys, below 2^31; 0 = nothing to do. All of a page's memory exists, even if it is partly filled.
  std::int64_t count = 0;
  float offset = 0;
  float threshold = 0;            ///< for `above`: logit > threshold, which NaN never is
  float* logits = nullptr;        ///< [count]
  float* group_max = nullptr;     ///< [ceil(count / 16)]: largest logit of keys 16 g .. 16 g + 15, what
                                  ///< select_top_k() goes by; NaN only if all of them are
  float* chunk_max = nullptr;     ///< [ceil(count / keys_per_page)]: largest logit of each page over all jobs
                                  ///< that name this array; NaN if one of them is, as on the CPU
  std::int32_t* above = nullptr;  ///< [above_capacity]: keys with logit > threshold, ascending
  std::int32_t* above_count = nullptr;  ///< [1]: how many there are, be it more than above_capacity
  std::int64_t above_capacity = 0;      ///< elements of `above`; what does not fit is left out
  std::int64_t pages_offset = 0;        ///< see `pages`; a multiple of 16
  const std::int64_t* device_count =
      nullptr;  ///< [1] if not null read instead of `count`, e.g. chunk_row::entries
};

/// What is the same for all jobs of a call.
struct score_options {
  std::int32_t heads = 0;           ///< of every query, 1 .. max_score_heads
  std::int32_t keys_per_page = 64;  ///< fast with planar pages of a multiple of 16 keys, best 64
  index_key_layout layout = index_key_layout::planar;
  bool chunk_max = false;    ///< some job wants chunk_max; costs a small launch that clears them
  bool above = false;        ///< some job wants `above`; otherwise the job's `above` fields are ignored
  std::int32_t num_sms = 0;  ///< multiprocessors to use, so that others stay free; 0 = all
  /// For `above`: [score_counters], device. Set to zero once before the first call; calls leave in it what
  /// the next one needs. Calls that may run at the same time need counters of their own.
  std::uint64_t* counters = nullptr;
};

/// Elements of score_options::counters.
inline constexpr std::int64_t score_counters = 1025;

/// Bytes of device workspace that score() needs with options.above for jobs of `max_keys` keys in all,
/// counting each job's rounded up to 64; 0 without. With less than that the keys that are beyond it may be
/// missing in `above`.
FLASHMEMORY_API std::size_t score_workspace_bytes(const score_options& options,
                                                  std::int64_t max_keys) noexcept;

/// Scores all jobs in one launch (two with options.chunk_max), split evenly in 64-key tiles over the
/// multiprocessors.
///
/// Results do not depend on num_sms, on the other jobs of the call or on timing, bit for bit. Enqueues and
/// returns; never allocates or synchronises; may be captured. On devices other than compute capability 9.0,
/// with interleaved keys or with keys_per_page not a multiple of 16 a simple kernel is used, whose sums
/// differ in the last bits.
///
/// \param      options  the same for all jobs
/// \param[in]  jobs     [num_jobs], device
/// \param      num_jobs jobs, those of count 0 included
/// \param      scratch  device, 8-byte aligned, score_workspace_bytes(); only used with options.above
/// \param      stream   not the host
/// \param[out] error    details if the call fails; may be null
/// \returns bad_argument for heads, keys_per_page, layout, num_jobs or num_sms out of range or a misaligned
///     workspace; null_data; workspace_small if there is none; unsupported for stream_ref::host();
///     cuda_error. In all these cases but the last nothing was enqueued.
FLASHMEMORY_API status score(const score_options& options, const score_job* jobs, std::int32_t num_jobs,
                             workspace scratch, stream_ref stream, fault* error = nullptr) noexcept;

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
