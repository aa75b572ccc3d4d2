// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/deepseek_v4.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// The kernels for the KV format of DeepSeek-V4; flashmemory/attend/deepseek_v4.hpp says what it is.
namespace deepseek_v4 {

using namespace v0::deepseek_v4;  // NOLINT: the format's constants belong here as well

/// Quantises rows into their places, bit for bit as quantise_entry() does. A kernel per call; can be captured.
/// \param[in] values    [n, entry_dim], f32 or bf16, unit last stride, rows of 16 aligned bytes; device
/// \param[in] locations [n] entry numbers, distinct; those outside the pool, -1 above all, are skipped; device
/// \returns bad_shape, bad_dtype (f16), bad_argument (pool), null_data, cuda_error
FLASHMEMORY_API status append_entries(const page_pool& pool, const_tensor<2> values,
                                      view<const std::int32_t, 1> locations, stream_ref stream,
                                      fault* error = nullptr) noexcept;

/// What a plan is made for: capacities.
struct attend_shape {
  std::int64_t rows =
      0;  ///< query tokens of a step, at most; the tokens of one sequence are rows of their own
  std::int32_t heads = 64;         ///< 64 or 128
  std::int32_t max_entries = 640;  ///< of a row, window and selected together
};

/// How the work is cut. Plain data: copy it, keep it, capture calls made with it.
///
/// Results are bit for bit the same for the same plan and the same lists, wherever the entries lie and whatever else
/// is in the batch. Another plan may cut elsewhere and round differently.
struct attend_plan {
  attend_shape shape;
  std::int32_t splits = 1;  ///< blocks, of one cluster, that share a row's entries; [1, 8]
  std::int32_t dim_splits =
      1;                      ///< clusters that share the output's dims, each reading all entries; 1, 2 or 4
  bool tensor_cores = false;  ///< the kernel for sm_90a; else a slower one for any device
};

/// Cuts the work so that a step with all rows at max_entries takes least time.
/// \param num_sms  multiprocessors to fill; 0 = those of the current device
/// \throws argument_error naming the field that cannot work; error with cuda_error without a device
FLASHMEMORY_API attend_plan plan_attend(const attend_shape& shape, std::int32_t num_sms = 0);

/// Bytes of scratch that calls with `plan` need: 64 KiB, and 1 KiB for each of dim_splits, per row, 64 heads and split;
/// none where splits or dim_splits is 1.
FLASHMEMORY_API std::size_t attend_workspace_bytes(const attend_plan& plan) noexcept;

/// Attention of each query row over its sliding window and its selected entries together, under one softmax:
/// out_h = sum_e softmax(scale * q_h . e) e; zero for a row without entries. Products of bf16 numbers, fp32
/// accumulation; with tensor_cores the softmax weights are rounded to bf16 before they multiply an entry, and an e4m3
/// code 0x7f under a finite scale, which quantise_entry() never writes, reads as 480 instead of NaN.
///
/// Enqueued on `stream`; never synchronises, never allocates, can be captured. With tensor_cores it is launched so that
/// its set-up may overlap the end of the kernel before it; it reads and writes nothing of the caller's until that has
/// ended.
/// \param[in]  q   [rows, heads, entry_dim], bf16, contiguous, 16-byte aligned; rows <= plan.shape.rows
/// \param[out] out [rows, heads, entry_dim], bf16, contiguous, 16-byte aligned
/// \returns bad_shape, bad_dtype, bad_argument (pool), null_data, workspace_small, unsupported (plan for another
///     device), cuda_error; nothing is enqueued then
FLASHMEMORY_API status sparse_attend(const attend_plan& plan, const entry_source& window,
                                     const entry_source& selected, const_tensor<3> q, tensor<3> out,
                                     const attend_options& options, stream_ref stream) noexcept;

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
