// SPDX-License-Identifier: MIT
#include "cuda/attend/combine.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int warps = tile_threads / 32;
constexpr int max_dim = 256;
constexpr int per_lane = max_dim / 32;

__device__ __forceinline__ float element(const void* data, dtype type, std::int64_t at) {
  if (type == dtype::f32) return static_cast<const float*>(data)[at];
  if (type == dtype::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
  return __half2float(static_cast<const __half*>(data)[at]);
}

/// Attention of one query row over one split, for every dtype and dims up to 256. A block owns (split, query
/// head, row and token), each of its warps every fourth entry with a running maximum of its own, each lane every
/// 32nd dim. Reads K and V once per query head; made to be right everywhere, not fast.
__global__ void __launch_bounds__(warps * 32)
    portable_kernel(const attend_call call, const partial_layout layout) {
  const std::int32_t split = blockIdx.x, head = blockIdx.y;
  const std::int32_t row = blockIdx.z / call.query_tokens, token = blockIdx.z % call.query_tokens;
  const std::int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const chunk_row mine = call.rows[row * call.row_stride];
  const split_range range = range_of(call, std::int32_t(mine.entries), split);
  if (split >= range.splits) return;
  const std::int64_t visible = mine.entries - (call.query_tokens - 1 - token);
  const std::int32_t kv_head = head / call.group;
  const std::int64_t q_at =
      (std::int64_t(row) * call.query_tokens + token) * call.q_row_stride + head * call.q_head_stride;
  float q[per_lane];
  for (int i = 0; i < per_lane; ++i) {
    const int d = lane + 32 * i;
    q[i] = d < call.key_dim ? element(call.q, call.type, q_at + d) : 0.0f;
  }
  float maximum = -INFINITY, sum = 0, values[per_lane] = {};
  for (std::int32_t c = range.begin; c < range.end; ++c) {
    const std::byte* const chunk = mine.chunks[c];
    const std::byte* const keys = chunk + call.key_offset + kv_head * call.key_block_bytes;
    const std::byte* const chunk_values = chunk + call.value_offset + kv_head * call.value_block_bytes;
    const std::int64_t first = std::int64_t(c) * call.entries_per_chunk;
    const std::int32_t there = std::int32_t(min(std::int64_t(call.entries_per_chunk), visible - first));
    for (std::int32_t e = warp; e < there; e += warps) {
      float dot = 0;
      for (int i = 0; i < per_lane; ++i) {
        const int d = lane + 32 * i;
        if (d < call.key_dim) dot += q[i] * element(keys, call.type, std::int64_t(e) * call.key_dim + d);
      }
      for (int step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
      const float logit = logit_of(call, dot);
      const float top = fmaxf(maximum, logit);
      const float old = top == -INFINITY ? 1.0f : ptx::exp2(maximum - top);
      // A NaN logit loses every maximum but must show in the result.
      const float weight = logit == -INFINITY ? 0.0f : ptx::exp2(logit - top);
      sum = sum * old + weight;
      for (int i = 0; i < per_lane; ++i) {
        const int d = lane + 32 * i;
        if (d < call.value_dim)
          values[i] = values[i] * old +
                      weight * element(chunk_values, call.type, std::int64_t(e) * call.value_dim + d);
      }
      maximum = top;
    }
  }

  __shared__ join_memory join;
  __shared__ float maxima[warps], sums[warps], all_values[warps][max_dim], top_of_tile, sum_of_tile;
  if (lane == 0) {
    maxima[warp] = maximum;
    sums[warp] = sum;
  }
  for (int i = 0; i < per_lane; ++i) all_values[warp][lane + 32 * i] = values[i];
  __syncthreads();
  float top = -INFINITY, total = 0;
  for (int w = 0; w < warps; ++w) top = fmaxf(top, maxima[w]);
  float weights[warps];
  for (int w = 0; w < warps; ++w) {
    weights[w] = maxima[w] == -INFINITY && sums[w] == 0 ? 0.0f : ptx::exp2(maxima[w] - top);
    total += sums[w] * weights[w];
  }
  for (std::int32_t d = threadIdx.x; d < call.value_dim; d += blockDim.x) {
    float value = 0;
    for (int w = 0; w < warps; ++w) value += all_values[w][d] * weights[w];
    all_values[0][d] = value;
  }
  if (threadIdx.x == 0) {
    top_of_tile = top;
    sum_of_tile = total;
  }
  __syncthreads();
  const std::int64_t tile_index = (std::int64_t(row) * call.query_tokens + token) * call.query_heads + head;
  const tile_rows_of_call tile = {token * call.group + head % call.group, 1, row, kv_head * call.group};
  finish_tile(call, layout, tile_index, tile, split, range.splits,
              {&top_of_tile, &sum_of_tile, all_values[0]}, join);
}

}  // namespace

cudaError_t launch_portable(const attend_call& call, const partial_layout& layout,
                            cudaStream_t stream) noexcept {
  const dim3 grid(unsigned(call.splits), unsigned(call.query_heads),
                  unsigned(call.num_rows * call.query_tokens));
  portable_kernel<<<grid, warps * 32, 0, stream>>>(call, layout);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
