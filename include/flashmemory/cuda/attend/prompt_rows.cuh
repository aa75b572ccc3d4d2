// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <flashmemory/cuda/attend/prompt_call.cuh>
#include <type_traits>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// How far, in powers of two, a row's weights may exceed one before its maximum moves.
inline constexpr float prompt_slack = 8;

/// What products are multiplied by to be logits in units of log2, where that is all; else 1.
template <bool kLinear, class Logits>
__device__ __forceinline__ float prompt_scale(const Logits& logits) {
  if constexpr (kLinear)
    return logits.scale;
  else
    return 1.0f;
}

/// What a thread has accumulated of its two rows besides their values; of the sums it has a quarter.
struct prompt_rows {
  float maximum[2], sum[2];

  __device__ __forceinline__ void clear() {
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
};

/// Where a row's state of a range is.
template <int kDim>
__device__ __forceinline__ float* prompt_state_of(const prompt_work& w, const prompt_unit& u,
                                                  std::int32_t range, std::int32_t r) {
  const std::int32_t row = u.first_row + r;
  const std::int64_t at = ((range * w.tokens + u.first_token + row / w.group) * w.query_heads +
                           u.kv_head * w.group + row % w.group);
  return w.state + at * (prompt_state_head + kDim);
}

template <int kDim>
__device__ __forceinline__ void load_prompt_state(const prompt_work& w, const prompt_unit& u,
                                                  const std::int32_t (&row)[2], prompt_rows& rows,
                                                  float (&o)[kDim / 2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row[half] >= u.rows) continue;
    const float* const from = prompt_state_of<kDim>(w, u, u.range, row[half]);
    rows.maximum[half] = from[0];
    rows.sum[half] = from[1 + t];
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const float2 v = *reinterpret_cast<const float2*>(from + prompt_state_head + 8 * j + 2 * t);
      o[4 * j + 2 * half] = v.x;
      o[4 * j + 2 * half + 1] = v.y;
    }
  }
}

template <int kDim>
__device__ __forceinline__ void store_prompt_state(const prompt_work& w, const prompt_unit& u,
                                                   const std::int32_t (&row)[2], const prompt_rows& rows,
                                                   const float (&o)[kDim / 2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row[half] >= u.rows) continue;
    float* const to = prompt_state_of<kDim>(w, u, u.range, row[half]);
    if (t == 0) to[0] = rows.maximum[half];
    to[1 + t] = rows.sum[half];
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j)
      *reinterpret_cast<float2*>(to + prompt_state_head + 8 * j + 2 * t) =
          make_float2(o[4 * j + 2 * half], o[4 * j + 2 * half + 1]);
  }
}

/// The states of all ranges, in ascending order.
template <int kDim>
__device__ __forceinline__ void join_prompt_states(const prompt_work& w, const prompt_unit& u,
                                                   const std::int32_t (&row)[2], prompt_rows& rows,
                                                   float (&o)[kDim / 2]) {
  const int t = threadIdx.x % 4;
  rows.clear();
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row[half] >= u.rows) continue;
    for (std::int32_t range = 0; range < u.ranges; ++range) {
      const float* const from = prompt_state_of<kDim>(w, u, range, row[half]);
      const float top = __ldcg(from), old = rows.maximum[half], now = fmaxf(top, old);
      const float keep = old == now ? 1.0f : ptx::exp2(old - now),
                  add = top == now ? 1.0f : ptx::exp2(top - now);
      rows.maximum[half] = now;
      rows.sum[half] = rows.sum[half] * keep + __ldcg(from + 1 + t) * add;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        const float2 v = __ldcg(reinterpret_cast<const float2*>(from + prompt_state_head + 8 * j + 2 * t));
        o[4 * j + 2 * half] = o[4 * j + 2 * half] * keep + v.x * add;
        o[4 * j + 2 * half + 1] = o[4 * j + 2 * half + 1] * keep + v.y * add;
      }
    }
  }
}

/// Whether an output takes two elements at a time.
template <class Output, class = void>
struct takes_pairs : std::false_type {};
template <class Output>
struct takes_pairs<Output, std::void_t<decltype(&Output::store_pair)>> : std::true_type {};

/// Divides by the denominators, the sinks included, and writes.
template <int kDim, class Call>
__device__ __forceinline__ void write_prompt_rows(const Call& call, const prompt_unit& u,
                                                  const std::int32_t (&row)[2], const prompt_rows& rows,
                                                  const float (&o)[kDim / 2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = rows.sum[half];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (row[half] >= u.rows) continue;
    const std::int32_t r = u.first_row + row[half];
    const std::int64_t token = u.first_token + r / call.work.group;
    const std::int32_t head = u.kv_head * call.work.group + r % call.work.group;
    float top = rows.maximum[half], weight = 1, denominator = sum;
    if (call.logits.has_sink()) {
      const float sink = call.logits.sink(head);
      top = fmaxf(rows.maximum[half], sink);
      if (top != -INFINITY) {
        weight = ptx::exp2(rows.maximum[half] - top);
        denominator = sum * weight + (sink == INFINITY ? INFINITY : ptx::exp2(sink - top));
      }
    }
    // NaN must get through: only an exact zero means that there was nothing.
    const float factor = denominator == 0.0f ? 0.0f : weight / denominator;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const int d = 8 * j + 2 * t;
      const float value = o[4 * j + 2 * half] * factor, next = o[4 * j + 2 * half + 1] * factor;
      if constexpr (takes_pairs<typename Call::output_type>::value) {
        call.output.store_pair(token, head, d, value, next);
      } else {
        call.output.store(token, head, d, value);
        call.output.store(token, head, d + 1, next);
      }
    }
    if (t == 0 && call.output.has_lse())
      call.output.store_lse(token, head, denominator == 0.0f ? -INFINITY : ln2 * (top + log2f(denominator)));
  }
}

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
