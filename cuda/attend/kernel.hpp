// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/cuda/attend.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Query rows of one KV head that a block of the tensor-core kernel works on: the M of its MMA.
inline constexpr int tile_rows = 16;

/// Entries that one pipeline stage of the tensor-core kernel holds.
inline constexpr int stage_entries = 64;

/// What the kernels get by value. Strides count elements.
struct attend_call {
  const chunk_row* rows = nullptr;
  const void* q = nullptr;
  void* out = nullptr;
  float* lse = nullptr;               ///< or null
  const float* sinks = nullptr;       ///< or null
  float* partials = nullptr;          ///< see partial_layout
  std::uint32_t* counters = nullptr;  ///< one per tile, zero between calls
  std::int64_t row_stride = 1;        ///< of `rows`
  std::int64_t q_row_stride = 0, q_head_stride = 0;
  std::int64_t lse_row_stride = 0, lse_head_stride = 0, sink_stride = 0;
  std::int64_t key_offset = 0, value_offset = 0;            ///< bytes, of head 0 of the layer in a chunk
  std::int64_t key_block_bytes = 0, value_block_bytes = 0;  ///< of one head
  std::int32_t num_rows = 0, query_tokens = 0, query_heads = 0, group = 0;
  std::int32_t key_dim = 0, value_dim = 0, entries_per_chunk = 0;
  std::int32_t chunks_per_split = 0, splits = 0, head_tiles = 0, num_sms = 0;
  std::int32_t cluster = 1;  ///< blocks that join a tile's splits: all splits, or 1 = through memory
  dtype type = dtype::f32, out_type = dtype::f32;
  float scale = 0;     ///< softmax scale x log2(e); with a soft cap, the scale alone
  float soft_cap = 0;  ///< or 0
};

/// Where partial results of rows that are cut into several splits meet, if no cluster joins them. A tile is what one
/// block accumulates: `rows_per_tile` query rows.
struct partial_layout {
  std::int64_t tiles = 0;
  std::int32_t rows_per_tile = 0, splits = 0;
  std::int64_t floats_per_split = 0;  ///< maxima [rows], sums [rows], padding, values [rows, value_dim]
  std::int32_t head_floats = 0;       ///< before the values
  std::size_t bytes = 0;              ///< in all; 0 if nothing meets in memory
};

partial_layout layout_of(const attend_plan& plan) noexcept;

/// bf16 or f16, key_dim = value_dim of 64, 128 or 256; needs sm_90.
cudaError_t launch_tensor_core(const attend_call& call, const partial_layout& layout,
                               cudaStream_t stream) noexcept;

/// Any dtype and dims.
cudaError_t launch_portable(const attend_call& call, const partial_layout& layout,
                            cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
