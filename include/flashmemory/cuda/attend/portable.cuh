// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/finish.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// Attention of one query row over one split, for every policy and dims up to max_dim. A block owns (split, query
/// head, row and token), each of its warps every fourth entry with a running maximum of its own, each lane every
/// 32nd dim. Reads K and V once per query head; made to be right everywhere, not fast.
template <class Call>
static __global__ void __launch_bounds__(tile_threads) portable_kernel(const Call call) {
  constexpr int warps = tile_threads / 32, per_lane = max_dim / 32;
  const work& w = call.work;
  const std::int32_t split = blockIdx.x, head = blockIdx.y;
  const std::int32_t row = blockIdx.z / w.query_tokens, token = blockIdx.z % w.query_tokens;
  const std::int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const typename Call::entries_type::list list = call.entries.row(row);
  const split_range range = range_of(w, list.entries, split);
  if (split >= range.splits) return;
  const std::int32_t visible = list.entries - (w.query_tokens - 1 - token);
  const std::int32_t kv_head = head / w.group;
  const logit_place query = place_of(call, list, row, token, head, visible);
  const typename Call::query_type* const q_from =
      call.q + (std::int64_t(row) * w.query_tokens + token) * call.q_row_stride + head * call.q_head_stride;
  float q[per_lane];
  for (int i = 0; i < per_lane; ++i) {
    const int d = lane + 32 * i;
    q[i] = d < w.key_dim ? to_float(q_from[d]) : 0.0f;
  }
  const std::int64_t key_stride = call.entries.key_stride(Call::keys_type::bytes(w.key_dim));
  const std::int64_t value_stride = call.entries.value_stride(Call::values_type::bytes(w.value_dim));
  float maximum = -INFINITY, sum = 0, values[per_lane] = {};
  for (std::int32_t c = range.begin; c < range.end; ++c) {
    const page_id page = call.entries.page(list, c);
    const std::byte* const page_keys = call.entries.keys(page, kv_head);
    const std::byte* const page_values = call.entries.values(page, kv_head);
    const std::int32_t first = c * w.entries_per_page;
    const std::int32_t there = min(w.entries_per_page, visible - first);
    for (std::int32_t e = warp; e < there; e += warps) {
      const entry_place place = {page, kv_head, e};
      const auto key = call.keys.at(page_keys + e * key_stride, place);
      float dot = 0;
      for (int i = 0; i < per_lane; ++i) {
        const int d = lane + 32 * i;
        if (d < w.key_dim) dot += q[i] * key[d];
      }
      for (int step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
      const float logit = logit_of(call, list, query, first + e, dot);
      const float top = fmaxf(maximum, logit);
      const float old = top == -INFINITY ? 1.0f : ptx::exp2(maximum - top);
      // A NaN logit loses every maximum but must show in the result.
      const float weight = logit == -INFINITY ? 0.0f : ptx::exp2(logit - top);
      sum = sum * old + weight;
      const auto value = call.values.at(page_values + e * value_stride, place);
      for (int i = 0; i < per_lane; ++i) {
        const int d = lane + 32 * i;
        if (d < w.value_dim) values[i] = values[i] * old + weight * value[d];
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
  for (int i = 0; i < warps; ++i) top = fmaxf(top, maxima[i]);
  float weights[warps];
  for (int i = 0; i < warps; ++i) {
    weights[i] = maxima[i] == -INFINITY && sums[i] == 0 ? 0.0f : ptx::exp2(maxima[i] - top);
    total += sums[i] * weights[i];
  }
  for (std::int32_t d = threadIdx.x; d < w.value_dim; d += tile_threads) {
    float value = 0;
    for (int i = 0; i < warps; ++i) value += all_values[i][d] * weights[i];
    all_values[0][d] = value;
  }
  if (threadIdx.x == 0) {
    top_of_tile = top;
    sum_of_tile = total;
  }
  __syncthreads();
  const std::int64_t tile_index = (std::int64_t(row) * w.query_tokens + token) * w.query_heads + head;
  const tile_rows_of_call tile = {token * w.group + head % w.group, 1, row, kv_head * w.group};
  finish_tile(call, tile_index, tile, split, range.splits, {&top_of_tile, &sum_of_tile, all_values[0]}, join);
}

}  // namespace detail

/// Attention of a decode step on any device, with any policies and dims up to max_dim. q and all products are f32.
///
/// Enqueues; never synchronises, never allocates, can be captured.
/// \param call  with a work_of() a plan without tensor cores, of at least one row
template <class Call>
cudaError_t launch_portable(const Call& call, cudaStream_t stream) noexcept {
  const dim3 grid(unsigned(call.work.splits), unsigned(call.work.query_heads),
                  unsigned(call.work.num_rows * call.work.query_tokens));
  detail::portable_kernel<<<grid, detail::tile_threads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
