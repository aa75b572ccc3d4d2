// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <flashmemory/cuda/attend/call.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// What a block has accumulated, in shared memory: per row the maximum of its logits in units of log2, the sum
/// of exp2(logit - maximum), and the values weighted likewise.
struct tile_state {
  float* maximum;  // [rows]
  float* sum;      // [rows]
  float* values;   // [rows, value_dim]
};

/// Which output rows a tile's rows are.
struct tile_rows_of_call {
  std::int32_t first;       // of the tile, among the KV head's query rows: token * group + head
  std::int32_t count;       // that exist
  std::int32_t row;         // of the step
  std::int32_t first_head;  // query head 0 of the KV head
};

/// Divides by the denominator, the sink included, and writes one element of one row.
template <class Call>
__device__ __forceinline__ void write_element(const Call& call, const tile_rows_of_call& tile, std::int32_t r,
                                              std::int32_t d, float maximum, float sum, float value) {
  const std::int32_t token = (tile.first + r) / call.work.group;
  const std::int32_t head = tile.first_head + (tile.first + r) % call.work.group;
  const std::int64_t row = std::int64_t(tile.row) * call.work.query_tokens + token;
  float top = maximum, denominator = sum;
  float weight = 1;
  if (call.logits.has_sink()) {
    const float sink = call.logits.sink(head);
    top = fmaxf(maximum, sink);
    weight = top == -INFINITY ? 0.0f : ptx::exp2(maximum - top);
    denominator =
        top == -INFINITY ? 0.0f : sum * weight + (sink == INFINITY ? INFINITY : ptx::exp2(sink - top));
  }
  // NaN must get through: only an exact zero means that there was nothing.
  const float result = denominator == 0.0f ? 0.0f : value * weight / denominator;
  call.output.store(row, head, d, result);
  if (d == 0 && call.output.has_lse())
    call.output.store_lse(row, head, denominator == 0.0f ? -INFINITY : ln2 * (top + log2f(denominator)));
}

/// Threads that work on a tile: all of the portable kernel's block, the consumers of the tensor-core kernel's.
inline constexpr int tile_threads = 128;

/// Of those threads.
__device__ __forceinline__ void tile_barrier() { ptx::sync_threads<tile_threads>(1); }

/// How the splits of a tile are weighted when they are joined.
struct join_memory {
  float weights[tile_rows][max_splits];
  float maximum[tile_rows], sum[tile_rows];
  bool last;
};

/// Ends a tile: writes the result if it has one split, else the partial one; the block that comes last joins all
/// of them, in the order of the splits, so that the result does not depend on which one that is.
/// The first tile_threads threads of a block; `state` is complete and visible to them.
template <class Call>
__device__ inline void finish_tile(const Call& call, std::int64_t tile_index, const tile_rows_of_call& tile,
                                   std::int32_t split, std::int32_t splits, const tile_state& state,
                                   join_memory& join) {
  const partial_layout& layout = call.work.layout;
  const std::int32_t count = tile.count, dim = call.work.value_dim;
  if (splits == 1) {
    for (std::int32_t i = threadIdx.x; i < count * dim; i += tile_threads)
      write_element(call, tile, i / dim, i % dim, state.maximum[i / dim], state.sum[i / dim],
                    state.values[i]);
    return;
  }
  const std::size_t stride = std::size_t(layout.floats_per_split);
  float* const parts = call.work.partials + std::size_t(tile_index) * call.work.splits * stride;
  float* const mine = parts + split * stride;
  const std::int32_t head = layout.head_floats;
  if (threadIdx.x < count) {
    mine[threadIdx.x] = state.maximum[threadIdx.x];
    mine[layout.rows_per_tile + threadIdx.x] = state.sum[threadIdx.x];
  }
  for (std::int32_t i = threadIdx.x; i < count * dim; i += tile_threads) mine[head + i] = state.values[i];
  // The barrier orders the others' stores before the release of thread 0, and its acquire before their loads.
  tile_barrier();
  if (threadIdx.x == 0) {
    join.last = ptx::add_acq_rel(&call.work.counters[tile_index], 1u) == unsigned(splits - 1);
    if (join.last) call.work.counters[tile_index] = 0;  // for the next call
  }
  tile_barrier();
  if (!join.last) return;
  // The first values are on their way while the weights are worked out.
  constexpr std::int32_t at_once = 16;
  const bool fours = dim % 4 == 0;
  const std::int32_t mine_first = 4 * std::int32_t(threadIdx.x);
  float4 held[at_once] = {};
  if (fours && mine_first < count * dim) {
#pragma unroll
    for (std::int32_t s = 0; s < at_once; ++s)
      held[s] =
          __ldcg(reinterpret_cast<const float4*>(parts + min(s, splits - 1) * stride + head + mine_first));
  }
  const std::int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (std::int32_t r = warp; r < count; r += tile_threads / 32) {
    float maxima[max_splits / 32], sums[max_splits / 32], top = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < max_splits / 32; ++i) {
      const std::int32_t s = lane + 32 * i;
      maxima[i] = s < splits ? __ldcg(parts + s * stride + r) : -INFINITY;
      sums[i] = s < splits ? __ldcg(parts + s * stride + layout.rows_per_tile + r) : 0.0f;
      top = fmaxf(top, maxima[i]);
    }
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
#pragma unroll
    for (int i = 0; i < max_splits / 32; ++i) {
      const float weight = maxima[i] == -INFINITY ? 0.0f : ptx::exp2(maxima[i] - top);
      total += sums[i] * weight;
      join.weights[r][lane + 32 * i] = weight;
    }
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    if (lane == 0) {
      join.maximum[r] = top;
      join.sum[r] = total;
    }
  }
  tile_barrier();
  for (std::int32_t i = mine_first; i < count * dim; i += 4 * tile_threads) {
    if (fours) {
      const std::int32_t r = i / dim;
      float4 value = make_float4(0, 0, 0, 0);
      std::int32_t s = 0;
      if (i == mine_first) {
#pragma unroll
        for (; s < at_once; ++s) {
          const float weight = s < splits ? join.weights[r][s] : 0.0f;
          if (s < splits) {
            value.x += held[s].x * weight;
            value.y += held[s].y * weight;
            value.z += held[s].z * weight;
            value.w += held[s].w * weight;
          }
        }
      }
#pragma unroll 16  // as many under way at once
      for (; s < splits; ++s) {
        const float4 part = __ldcg(reinterpret_cast<const float4*>(parts + s * stride + head + i));
        const float weight = join.weights[r][s];
        value.x += part.x * weight;
        value.y += part.y * weight;
        value.z += part.z * weight;
        value.w += part.w * weight;
      }
      write_element(call, tile, r, i % dim, join.maximum[r], join.sum[r], value.x);
      write_element(call, tile, r, i % dim + 1, join.maximum[r], join.sum[r], value.y);
      write_element(call, tile, r, i % dim + 2, join.maximum[r], join.sum[r], value.z);
      write_element(call, tile, r, i % dim + 3, join.maximum[r], join.sum[r], value.w);
    } else {
      for (std::int32_t j = i; j < min(i + 4, count * dim); ++j) {
        const std::int32_t r = j / dim;
        float value = 0;
        for (std::int32_t s = 0; s < splits; ++s)
          value += __ldcg(parts + s * stride + head + j) * join.weights[r][s];
        write_element(call, tile, r, j % dim, join.maximum[r], join.sum[r], value);
      }
    }
  }
}

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
