// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>

#include "cuda/core/append_target.hpp"
#include "cuda/core/key_page.hpp"
#include "cuda/select/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// One lane's encoder: mean of the keys of `tokens_per_key` tokens of one KV head -> projection -> index key.
struct pooled_encoder {
  const float* projection = nullptr;  ///< [key_dim, dim], transposed; null = none
  std::int32_t kv_head = 0, key_dim = 0, dim = 0, tokens_per_key = 4;
  key_page page;                           ///< type and bytes of a key
  unsigned long long* nan_keys = nullptr;  ///< counts keys that are no numbers, which become zero
};

/// Keys [first_key, first_key + count) of a part, whose tokens' rows are in `from` and whose earlier ones are kept.
/// \param[out] out  [count, encoder.page.key_bytes()]
cudaError_t launch_encode_pooled(const pooled_encoder& encoder, const kept_rows& kept, const row_part& part,
                                 const row_tensor& from, std::int64_t first_key, std::int64_t count,
                                 std::byte* out, cudaStream_t stream) noexcept;

/// The keys that a decode step completes; see key_encoders::encode_step().
cudaError_t launch_encode_step_pooled(const pooled_encoder& encoder, const kept_rows& kept,
                                      const std::int64_t* places, const std::int64_t* positions,
                                      const append_target* targets, std::int64_t rows, std::int32_t per_row,
                                      cudaStream_t stream) noexcept;

/// One query head of one of the newest tokens.
struct pooled_row {
  std::int32_t tap = 0;   ///< whose tensor it is in
  std::int32_t at = 0;    ///< element of that tensor's row where it starts
  std::int32_t lane = 0;  ///< whose keys it is asked against
  std::int32_t token = 0;
};

/// The rows of a lane follow each other.
struct pooled_lane {
  std::int32_t first_row = 0, rows = 0;
  const float* projection = nullptr;  ///< of queries, [key_dim, dim], transposed; null = none
};

/// What all launches of a scoring share, in device memory where it is pointers.
struct pooled_problem {
  const pooled_row* rows = nullptr;                           ///< [row_count]
  const pooled_lane* lanes = nullptr;                         ///< [lane_count]
  std::int32_t row_count = 0, lane_count = 0, most_rows = 0;  ///< of one lane
  std::int32_t tokens = 1, key_dim = 0, dim = 0;
  float scale = 1;
  std::int32_t uncounted_sink_chunks = 0, uncounted_recent_chunks = 0;
  key_page page;
  float* queries = nullptr;  ///< [group, row_count, dim]
  float* masses = nullptr;   ///< [group, row_count, stride]
  float* totals = nullptr;   ///< [group, row_count]
  std::int64_t stride = 0;
};

/// A sequence that is due, in a device table, followed by nothing; its lanes' keys are in another.
struct pooled_job {
  float* scores = nullptr;  ///< [chunks] out
  std::int64_t chunks = 0;
};

/// Queries of one tap of `count` sequences, [count, tap's row], into problem.queries.
cudaError_t launch_pooled_queries(const pooled_problem& problem, std::int32_t tap, const void* queries,
                                  dtype type, std::int64_t row_stride, std::int32_t count,
                                  cudaStream_t stream) noexcept;

/// Scores of `count` sequences from their queries: products, softmax of each row, largest over lanes and heads.
/// \param jobs  [count], device
/// \param keys  [count, lane_count] pages of each lane, device
/// \param most_chunks  of a sequence
cudaError_t launch_pooled_scores(const pooled_problem& problem, const pooled_job* jobs,
                                 const std::byte* const* keys, std::int32_t count, std::int64_t most_chunks,
                                 cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
