// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/options.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// Device code of the library: what an engine enqueues on its own streams. Every pointer is device memory
/// unless a line says otherwise, and what changes from step to step is read from device memory when a kernel
/// runs, so that calls can be captured in a CUDA graph once.
namespace cuda {

/// What one row of a step attends to, in device memory: entry e is row e % entries_per_chunk of chunk
/// e / entries_per_chunk of this list, so all chunks but the last are full.
struct chunk_row {
  const std::byte* const* chunks =
      nullptr;               ///< device array, ascending by chunk id; each chunk in chunk_layout
  std::int64_t entries = 0;  ///< in all; 0 = the row attends to nothing
};

/// What a plan is made for. Capacities, not what a step really has: that is read from the chunk rows.
struct attend_shape {
  kv_geometry geometry;
  std::int32_t query_heads = 0;  ///< a multiple of kv_heads
  std::int32_t query_tokens =
      1;  ///< of every row, [1, 8]; the last one sees all entries, the one before it one less, ...
  std::int64_t rows = 0;        ///< sequences in a step, at most
  std::int64_t max_chunks = 0;  ///< chunks of a row, at most
};

/// How the work is cut. Plain data: copy it, keep it, capture calls made with it.
///
/// Results are bit for bit the same for the same plan and the same entries, wherever the chunks lie and whatever
/// else is in the batch. Another plan may cut elsewhere and round differently.
struct attend_plan {
  attend_shape shape;
  std::int32_t chunks_per_split = 0;  ///< consecutive chunks that one block works through
  std::int32_t splits = 0;            ///< parts that a row of max_chunks chunks falls into
  std::int32_t head_tiles = 0;        ///< blocks that share a KV head's query rows, 16 rows each
  std::int32_t num_sms = 0;           ///< multiprocessors that the tensor-core kernel occupies
  bool tensor_cores = false;          ///< bf16 or f16 with key_dim = value_dim of 64, 128 or 256
};

/// Cuts the work so that a step with all rows at max_chunks fills the device.
/// \param num_sms  multiprocessors to fill; 0 = those of the current device
/// \throws argument_error naming the field that cannot work; error with cuda_error without a device
FLASHMEMORY_API attend_plan plan_attend(const attend_shape& shape, std::int32_t num_sms = 0);

/// Elements of attend_options::counters.
inline constexpr std::int64_t attend_counters = 16384;

/// Bytes of scratch that calls with `plan` need; 0 if no two blocks of a call meet in memory.
FLASHMEMORY_API std::size_t attend_workspace_bytes(const attend_plan& plan) noexcept;

/// Attention of a decode step over the entries of each row's resident chunks: out = softmax(scale * q k^T) v
/// (paper, section on sparse decoding), with fp32 accumulation; the softmax weights are rounded to the
/// geometry's type before they multiply V where the plan says tensor_cores.
///
/// Enqueued on `stream`; never synchronises, never allocates, can be captured.
/// \param      rows  [n], n <= plan.shape.rows, device; read when the kernel runs. What a row has beyond
///     plan.shape.max_chunks chunks is not attended to
/// \param      layer [0, layers)
/// \param[in]  q     [n * query_tokens, query heads, key_dim], the geometry's dtype, unit last stride, rows of 16
///     aligned bytes
/// \param[out] out   [n * query_tokens, query heads, value_dim], the geometry's dtype or f32, contiguous; zero for a
///     row without entries
/// \returns bad_shape, bad_dtype, null_data, bad_argument, out_of_range (layer), workspace_small, cuda_error
FLASHMEMORY_API status sparse_attend(const attend_plan& plan, view<const chunk_row, 1> rows,
                                     std::int32_t layer, const_tensor<3> q, tensor<3> out,
                                     const attend_options& options, stream_ref stream) noexcept;

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
