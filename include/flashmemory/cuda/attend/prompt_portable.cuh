// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/elements.cuh>
#include <flashmemory/cuda/attend/plan.hpp>
#include <flashmemory/cuda/attend/prompt_call.cuh>
#include <flashmemory/cuda/core/ptx.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// What a warp has accumulated of its row: the maximum of its logits in units of log2, the sum of the weights, and the
/// values, of which lane l has dims l, l + 32, ...
struct prompt_row_state {
  static constexpr int per_lane = max_dim / 32;
  float maximum = -INFINITY, sum = 0;
  float values[per_lane] = {};

  __device__ float* place(const prompt_work& w, const prompt_unit& u, std::int32_t range,
                          std::int32_t r) const {
    const std::int32_t row = u.first_row + r;
    const std::int64_t at = (range * w.tokens + u.first_token + row / w.group) * w.query_heads +
                            u.kv_head * w.group + row % w.group;
    return w.state + at * (prompt_state_head + w.value_dim);
  }
  __device__ void load(const prompt_work& w, const float* from) {
    maximum = __ldcg(from);
    sum = __ldcg(from + 1);
    for (int i = 0; i < per_lane; ++i) {
      const int d = threadIdx.x % 32 + 32 * i;
      if (d < w.value_dim) values[i] = __ldcg(from + prompt_state_head + d);
    }
  }
  __device__ void store(const prompt_work& w, float* to) const {
    if (threadIdx.x % 32 == 0) {
      to[0] = maximum;
      to[1] = sum;
    }
    for (int i = 0; i < per_lane; ++i) {
      const int d = threadIdx.x % 32 + 32 * i;
      if (d < w.value_dim) to[prompt_state_head + d] = values[i];
    }
  }
  __device__ void join(const prompt_row_state& other) {
    const float top = fmaxf(maximum, other.maximum);
    const float keep = maximum == top ? 1.0f : ptx::exp2(maximum - top);
    const float add = other.maximum == top ? 1.0f : ptx::exp2(other.maximum - top);
    maximum = top;
    sum = sum * keep + other.sum * add;
    for (int i = 0; i < per_lane; ++i) values[i] = values[i] * keep + other.values[i] * add;
  }
};

/// Entries [first, first + count) of a page, at most 32: a lane has the logit of one, then all add their dims of V.
template <class Call>
__device__ void add_prompt_entries(const Call& call, const float* q, const logit_place& row,
                                   std::int32_t first, std::int32_t count,
                                   const typename Call::query_type* keys,
                                   const typename Call::query_type* values, prompt_row_state& state) {
  const prompt_work& w = call.work;
  const std::int32_t lane = threadIdx.x % 32;
  float logit = -INFINITY;
  if (lane < count) {
    const typename Call::query_type* const key = keys + std::int64_t(lane) * w.key_dim;
    float dot = 0;
    for (std::int32_t d = 0; d < w.key_dim; ++d) dot += q[d] * to_float(key[d]);
    logit_place place = row;
    place.entry = first + lane;
    place.position = place.entry;
    logit = call.logits(dot, place);
  }
  float top = logit;
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
  top = fmaxf(top, state.maximum);
  const float old = state.maximum == top ? 1.0f : ptx::exp2(state.maximum - top);
  // A NaN logit loses every maximum but must show in the result.
  const float weight = logit == -INFINITY ? 0.0f : ptx::exp2(logit - (top == -INFINITY ? 0.0f : top));
  float sum = weight;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  state.maximum = top;
  state.sum = state.sum * old + sum;
  for (int i = 0; i < prompt_row_state::per_lane; ++i) state.values[i] *= old;
  for (std::int32_t e = 0; e < count; ++e) {
    const float mine = __shfl_sync(~0u, weight, e);
    for (int i = 0; i < prompt_row_state::per_lane; ++i) {
      const int d = lane + 32 * i;
      if (d < w.value_dim) state.values[i] += mine * to_float(values[std::int64_t(e) * w.value_dim + d]);
    }
  }
}

/// Divides by the denominator, the sink included, and writes.
template <class Call>
__device__ void write_prompt_row(const Call& call, const prompt_unit& u, std::int32_t r,
                                 const prompt_row_state& state) {
  const std::int32_t row = u.first_row + r, head = u.kv_head * call.work.group + row % call.work.group;
  const std::int64_t token = u.first_token + row / call.work.group;
  float top = state.maximum, weight = 1, denominator = state.sum;
  if (call.logits.has_sink()) {
    const float sink = call.logits.sink(head);
    top = fmaxf(state.maximum, sink);
    if (top != -INFINITY) {
      weight = ptx::exp2(state.maximum - top);
      denominator = state.sum * weight + (sink == INFINITY ? INFINITY : ptx::exp2(sink - top));
    }
  }
  // NaN must get through: only an exact zero means that there was nothing.
  const float factor = denominator == 0.0f ? 0.0f : weight / denominator;
  for (int i = 0; i < prompt_row_state::per_lane; ++i) {
    const int d = threadIdx.x % 32 + 32 * i;
    if (d < call.work.value_dim) call.output.store(token, head, d, state.values[i] * factor);
  }
  if (threadIdx.x % 32 == 0 && call.output.has_lse())
    call.output.store_lse(token, head, denominator == 0.0f ? -INFINITY : ln2 * (top + log2f(denominator)));
}

/// A warp has a query row. Reads K and V once per row; made to be right everywhere, not fast.
template <class Call>
static __global__ void __launch_bounds__(32 * prompt_portable_tile) prompt_portable_kernel(const Call call) {
  __shared__ prompt_unit unit;
  __shared__ std::uint32_t last;
  __shared__ float q[prompt_portable_tile][max_dim];
  const prompt_work& w = call.work;
  const std::int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  prompt_units<Call> units(call);
  for (;;) {
    if (warp == 0) {
      std::uint32_t number = 0;
      if (lane == 0) number = atomicAdd(&w.counters[0], 1u);
      const prompt_unit found = units.at(__shfl_sync(~0u, number, 0));
      if (lane == 0) unit = found;
    }
    __syncthreads();
    const prompt_unit u = unit;
    __syncthreads();
    if (!u.there) break;
    if (u.range >= u.ranges) continue;
    const bool mine = warp < u.rows;
    prompt_row_state state;
    if (mine && !w.first && (u.ranges == 1 || u.blocks > 0)) state.load(w, state.place(w, u, u.range, warp));
    if (mine && u.blocks > 0) {
      const prompt_row row = call.entries.row(u.item);
      const std::int32_t r = u.first_row + warp, head = u.kv_head * w.group + r % w.group;
      const auto* const from =
          call.q + (u.first_token + r / w.group) * call.q_row_stride + head * call.q_head_stride;
      for (std::int32_t d = lane; d < w.key_dim; d += 32) q[warp][d] = to_float(from[d]);
      __syncwarp();
      const logit_place place = {u.item, r / w.group, head, 0, 0, std::int64_t(u.position) + r / w.group};
      const std::int32_t visible = u.sees(warp, w.group);
      for (std::int32_t c = u.begin; c < u.end; ++c) {
        const std::int32_t first = row.ids[c] * w.entries_per_page;
        const auto* const keys =
            reinterpret_cast<const typename Call::query_type*>(call.entries.keys(row.chunks[c], u.kv_head));
        const auto* const values =
            reinterpret_cast<const typename Call::query_type*>(call.entries.values(row.chunks[c], u.kv_head));
        const std::int32_t there = min(w.entries_per_page, visible - first);
        for (std::int32_t e = 0; e < there; e += 32)
          add_prompt_entries(call, q[warp], place, first + e, min(32, there - e),
                             keys + std::int64_t(e) * w.key_dim, values + std::int64_t(e) * w.value_dim,
                             state);
      }
      __syncwarp();
    }
    if (u.ranges == 1 && w.last) {
      if (mine) write_prompt_row(call, u, warp, state);
      continue;
    }
    if (mine && (w.first || u.blocks > 0)) state.store(w, state.place(w, u, u.range, warp));
    if (!w.last) continue;
    // The unit that comes last joins the states of all ranges, in their order.
    __syncthreads();
    if (threadIdx.x == 0) {
      std::uint32_t* const counter = w.counters + prompt_first_counter + u.tile;
      last = ptx::add_acq_rel(counter, 1u) == unsigned(u.ranges - 1);
      if (last) *counter = 0;
    }
    __syncthreads();
    if (last && mine) {
      state = prompt_row_state{};
      for (std::int32_t range = 0; range < u.ranges; ++range) {
        prompt_row_state other;
        other.load(w, state.place(w, u, range, warp));
        state.join(other);
      }
      write_prompt_row(call, u, warp, state);
    }
  }
  // The last block to end leaves zeros for the next call.
  if (threadIdx.x == 0 && atomicAdd(&w.counters[1], 1u) == gridDim.x - 1) w.counters[0] = w.counters[1] = 0;
}

}  // namespace detail

/// Attention of prompts on any device, any Logits and Output, dims up to max_dim; the entries of a page and KV head are packed. q
/// and all products are f32.
///
/// Enqueues; never synchronises, never allocates, can be captured.
/// \param call  with a prompt_work_of() a plan without tensor cores, of at least one item
template <class Call>
cudaError_t launch_prompt_portable(const Call& call, cudaStream_t stream) noexcept {
  constexpr int blocks_per_sm = 8;
  detail::prompt_portable_kernel<<<unsigned(call.work.num_sms * blocks_per_sm), 32 * prompt_portable_tile, 0,
                                   stream>>>(call);
  return cudaGetLastError();
}

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
