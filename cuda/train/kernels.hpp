// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/dtype.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What the launchers of one document share. Operands are bf16 if `bf16`, else f32; shapes as device_workspace
/// says, strides of parameters `parameter_count`.
struct train_call {
  bool bf16 = false;
  std::int64_t retrievers = 0;
  std::int64_t true_windows = 0, windows = 0;  ///< as asked, and padded
  std::int64_t chunks = 0, keys_per_chunk = 0, keys = 0;
  std::int64_t true_hidden = 0, hidden = 0;
  std::int64_t true_rank = 0, rank = 0;
  std::int64_t true_heads = 0, heads = 0;
  std::int64_t parameter_count = 0;
  std::int64_t q_norm = 0, offset = 0, wk = 0;  ///< in the parameters
  float q_norm_eps = 0, key_scale_floor = 0, gate_scale = 0;
  bool bf16_rounding = false, rope = false, quantise = false;
  const float* parameters = nullptr;
  float* gradient = nullptr;
  const float* turns = nullptr;
  float* first = nullptr;
  float* root = nullptr;
  float* gates = nullptr;
  void* normed = nullptr;
  float* flat = nullptr;
  void* queries = nullptr;
  void* key_map = nullptr;
  void* keys_at = nullptr;
  float* scores = nullptr;
  std::int32_t* where = nullptr;
  float* pairs = nullptr;
  void* d_flat = nullptr;
  void* d_first = nullptr;
  float* d_low = nullptr;
  void* d_keys = nullptr;
  float* d_map = nullptr;
  float* tile = nullptr;
  cudaStream_t stream = nullptr;
};

/// Rows [count, width] of f32 or bf16, contiguous -> operand rows [padded count, padded width], zeros around.
cudaError_t launch_pad_rows(const train_call& call, const void* from, dtype type, std::int64_t count,
                            std::int64_t width, void* to, std::int64_t padded_count,
                            std::int64_t padded_width, std::int64_t batches) noexcept;
/// Recorded keys [count, 132] of e4m3 bytes and an f32 scale -> retriever's keys_at.
cudaError_t launch_native_keys(const train_call& call, const void* from, std::int64_t count,
                               std::int64_t retriever) noexcept;
/// key_map = the transform of wk.
cudaError_t launch_key_map(const train_call& call) noexcept;
/// Products of key inputs [keys, 128] in `from` -> retriever's keys_at, rounded to e4m3 and back.
cudaError_t launch_quantise(const train_call& call, const float* from, std::int64_t retriever) noexcept;
/// first -> root, normed, gates.
cudaError_t launch_normalise(const train_call& call) noexcept;
/// flat -> queries: rounding, RoPE, Hadamard transform.
cudaError_t launch_finish(const train_call& call) noexcept;
/// Logits per head [R, rows of `count` chunks, H, W] in tile -> scores and where of chunks from `chunk` on: over a
/// chunk's keys in order, z = offset + sum over heads in order of gate * max(dot, 0), and the first largest z.
cudaError_t launch_reduce(const train_call& call, std::int64_t chunk, std::int64_t count) noexcept;

/// scores are d_scores from here on.
/// -> gradient of the offset.
cudaError_t launch_offset_gradient(const train_call& call) noexcept;
/// -> pairs, d_flat (turned back), gate columns of d_first. Chunks are added up in order.
cudaError_t launch_query_gradient(const train_call& call) noexcept;
/// pairs -> d_keys of `count` chunks from `chunk` on, by way of gradients per window in tile.
cudaError_t launch_key_gradient(const train_call& call, std::int64_t chunk, std::int64_t count) noexcept;
/// d_keys of rows that belong to no chunk are zero.
cudaError_t launch_clear_key_tail(const train_call& call) noexcept;
/// d_map -> gradient of wk.
cudaError_t launch_map_gradient(const train_call& call) noexcept;
/// d_low -> rank columns of d_first, gradient of q_norm.
cudaError_t launch_norm_gradient(const train_call& call) noexcept;

/// One step of AdamW on all retrievers' parameters, all device memory.
struct update_call {
  std::int64_t retrievers = 0, parameter_count = 0, q_norm = 0, matrices = 0;
  const float* gradient = nullptr;
  float* parameters = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  void* copies = nullptr;  ///< bf16 [retrievers, matrices], or null
  float share = 1, scale = 1;
  float rate = 0, beta1 = 0, beta2 = 0, eps = 0, decay = 0, correction1 = 1, correction2 = 1;
  cudaStream_t stream = nullptr;
};
/// partial[0] = the sum of squares of gradient * share; the rest of `partial` [1 + partial_sums] is scratch.
cudaError_t launch_square_sum(const update_call& call, double* partial) noexcept;
cudaError_t launch_adamw(const update_call& call) noexcept;
/// parameters -> copies.
cudaError_t launch_copies(const update_call& call) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
