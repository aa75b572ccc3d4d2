// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <flashmemory/indexer/dual_encoder.hpp>

#include "cuda/core/append_target.hpp"
#include "cuda/core/key_page.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The rows of the newest tokens of one source, for all places: [places, capacity, width], token t of a place at t %
/// capacity.
struct kept_rows {
  std::byte* data = nullptr;
  dtype type = dtype::f32;
  std::int64_t width = 0;
  std::int64_t capacity = 0;
};

/// A sequence's part of a tensor of rows.
struct row_part {
  std::int32_t place = 0;
  std::int32_t tokens = 0;
  std::int64_t position = 0;
  std::int64_t from = 0;  ///< first row
};

/// As many parts as travel as a kernel's parameter.
struct row_parts {
  static constexpr std::int32_t most = 96;
  row_part part[most];
};

/// Hidden states, queries or keys [rows, heads, head_dim], unit last stride.
struct row_tensor {
  const void* data = nullptr;
  dtype type = dtype::f32;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t head_dim = 0;  ///< the width, of one head
};

/// Keeps the newest rows of each part.
/// \param most_tokens  of a part
cudaError_t launch_keep_rows(const kept_rows& kept, const row_parts& parts, std::int32_t count,
                             std::int64_t most_tokens, const row_tensor& from, cudaStream_t stream) noexcept;

/// Keeps the rows of a decode step: row r * tokens + t is token positions[r] + t of place places[r], nothing where that
/// is negative.
cudaError_t launch_keep_step(const kept_rows& kept, const std::int64_t* places, const std::int64_t* positions,
                             std::int32_t rows, std::int32_t tokens, const row_tensor& from,
                             cudaStream_t stream) noexcept;

/// Rows of the `tokens` tokens up to positions[i] of place places[i], for those before oldest[i] that one's -> out [count,
/// tokens, width].
cudaError_t launch_gather_rows(const kept_rows& kept, const std::int64_t* places,
                               const std::int64_t* positions, const std::int64_t* oldest, std::int64_t count,
                               std::int64_t tokens, std::byte* out, cudaStream_t stream) noexcept;

/// Copies `bytes` bytes, a multiple of 8, from host memory that the device can read. A kernel, because a copy on the
/// caller's stream would wait its turn at the copy engine behind a recall.
cudaError_t launch_fetch(const std::byte* pinned, std::byte* device, std::size_t bytes,
                         cudaStream_t stream) noexcept;

/// One index-key lane's encoder.
struct key_encoder {
  const float* weights = nullptr;  ///< [hidden, 128], transposed
  std::int64_t hidden = 0;
  std::int32_t tokens_per_key = 4;
  std::int32_t window = 4;
  float scale_floor = 1e-4f;
  unsigned long long* nan_keys = nullptr;  ///< counts keys that are no numbers, which become zero
};

/// Keys [first_key, first_key + count) of a part, whose tokens' rows are in `from` and whose earlier ones are kept.
/// \param[out] out  [count, 132]
cudaError_t launch_encode_keys(const key_encoder& encoder, const kept_rows& kept, const row_part& part,
                               const row_tensor& from, std::int64_t first_key, std::int64_t count,
                               std::byte* out, cudaStream_t stream) noexcept;

/// The keys that a decode step completes, from kept rows alone, to their pages: key j of row r is that of tokens
/// ending with (positions[r] / tokens_per_key + j + 1) * tokens_per_key - 1.
/// \param targets  [rows * per_row]
cudaError_t launch_encode_step_keys(const key_encoder& encoder, const kept_rows& kept,
                                    const std::int64_t* places, const std::int64_t* positions,
                                    const append_target* targets, std::int64_t rows, std::int32_t per_row,
                                    const key_page& page, cudaStream_t stream) noexcept;

/// Logits [retrievers, stride] of the keys of `chunks` chunks -> one score per chunk, for reductions that scoring
/// itself does not do.
cudaError_t launch_reduce_chunks(const float* logits, std::int32_t retrievers, std::int64_t stride,
                                 std::int64_t chunks, std::int32_t keys_per_chunk, ensemble combine,
                                 key_reduction reduce, float* scores, cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
