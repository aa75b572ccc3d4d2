// SPDX-License-Identifier: MIT
#pragma once

// The quick way to a few candidates for a row's top-k, for k up to the number of threads. The k-th largest of
// the threads' maxima is no more than the k-th largest element, so only elements that reach it can be
// selected; usually that leaves little more than k. An element costs a comparison or two, and only candidates
// are looked at more closely.

#include <cstdint>

#include "score/block_select.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Candidates that there is room for.
inline constexpr std::int32_t most_narrowed = 4 * select_threads;

struct narrowed {
  std::uint32_t keys[most_narrowed];
  std::int32_t ids[2][most_narrowed];  // of groups, of scores
};

/// Candidates as elements, four a thread.
class narrowed_keys {
 public:
  __device__ narrowed_keys(const std::uint32_t* keys, const std::int32_t* ids, std::int32_t count)
      : keys_(keys), ids_(ids), count_(count) {}

  __device__ std::int32_t count() const { return count_; }
  __device__ std::int32_t batches() const { return 1; }
  __device__ std::int32_t quads() const { return 1; }
  __device__ std::int32_t first(std::int32_t) const { return 4 * static_cast<std::int32_t>(threadIdx.x); }
  __device__ void hold(std::int32_t) const {}
  __device__ std::int32_t id(std::int32_t e) const { return ids_[e]; }
  __device__ uint4 quad(int) const {
    const std::int32_t e = first(0);
    uint4 four = reinterpret_cast<const uint4*>(keys_)[threadIdx.x];
    if (e >= count_) four.x = 0;
    if (e + 1 >= count_) four.y = 0;
    if (e + 2 >= count_) four.z = 0;
    if (e + 3 >= count_) four.w = 0;
    return four;
  }

 private:
  const std::uint32_t* keys_;
  const std::int32_t* ids_;
  std::int32_t count_;
};

/// Four scores from element `e` on; NaN where there is none.
__device__ __forceinline__ float4 load_scores(const element_list& list, std::int32_t e, bool whole) {
  const float none = __uint_as_float(0x7fc00000u);
  float4 v{none, none, none, none};
  if (e >= list.count) return v;
  const std::int32_t id = list.id(e);
  const float* const from = list.scores + id;
  if (whole && id + 3 < list.limit) return *reinterpret_cast<const float4*>(from);
  if (id < list.limit) v.x = from[0];
  if (id + 1 < list.limit) v.y = from[1];
  if (id + 2 < list.limit) v.z = from[2];
  if (id + 3 < list.limit) v.w = from[3];
  return v;
}

/// Collects the ids of the elements that reach a bound, ascending. Says how many they are, or that they are
/// too many or the bound could not be had: -1. Ends with all threads having met.
/// \param bound what they must reach; NaN = find a bound that at least `k` of them reach, and tell it in
///     state.bound
__device__ __forceinline__ std::int32_t narrow(const element_list& list, float bound, std::uint32_t k,
                                               select_state& state, std::int32_t* ids) {
  constexpr int quads = 4;
  constexpr std::int32_t batch_elements = quads * 4 * select_threads;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const bool whole = reinterpret_cast<std::uintptr_t>(list.scores) % 16 == 0;
  const std::int32_t batches = (list.count + batch_elements - 1) / batch_elements;
  float4 v[quads];
  const auto load = [&](std::int32_t batch) {
#pragma unroll
    for (int q = 0; q < quads; ++q) {
      v[q] = load_scores(list, batch * batch_elements + (q * select_threads + thread) * 4, whole);
    }
  };
  const bool searches = isnan(bound);
  if (searches) {
    float best = bound;
#pragma unroll 1
    for (std::int32_t batch = 0; batch < batches; ++batch) {
      load(batch);
#pragma unroll
      for (int q = 0; q < quads; ++q) best = fmaxf(best, fmaxf(fmaxf(v[q].x, v[q].y), fmaxf(v[q].z, v[q].w)));
    }
    const std::uint32_t key = isnan(best) ? 0 : ordered_key(best);
    reinterpret_cast<uint2*>(state.histogram)[thread] = uint2{0, 0};
    if (__syncthreads_count(key != 0) < static_cast<int>(k)) return -1;
    std::uint32_t low = key != 0 ? key : ~0u, high = key;
    find_range(low, high, state);
    const int shift = max(32 - __clz(static_cast<int>(high - low)) - radix_bits, 0);
    count_if(key != 0, static_cast<std::uint32_t>(__cvta_generic_to_shared(state.histogram)) +
                           ((key - low) >> shift) * 4);
    __syncthreads();
    find_bin(k, state);
    bound = ordered_score(low + (state.bin << shift));
    if (thread == 0) state.bound = bound;
  }
  std::uint32_t found = 0;
#pragma unroll 1
  for (std::int32_t batch = 0; batch < batches; ++batch) {
    if (batches > 1 || !searches) load(batch);
    std::uint32_t reach = 0;  // bit 4 q + i
#pragma unroll
    for (int q = 0; q < quads; ++q) {
      reach |= (v[q].x >= bound ? 1u : 0u) << 4 * q | (v[q].y >= bound ? 2u : 0u) << 4 * q |
               (v[q].z >= bound ? 4u : 0u) << 4 * q | (v[q].w >= bound ? 8u : 0u) << 4 * q;
    }
    std::uint32_t before[2], total[2];  // of quads 0 and 1, 2 and 3
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t counts = __popc(reach >> 8 * i & 15) | __popc(reach >> (8 * i + 4) & 15) << 16;
      before[i] = scan_exclusive(counts, state, i, total[i]);
    }
    std::uint32_t start = found;
#pragma unroll
    for (int q = 0; q < quads; ++q) {
      std::uint32_t at = start + (before[q / 2] >> (q % 2 * 16) & 0xffff);
      const std::int32_t e = batch * batch_elements + (q * select_threads + thread) * 4;
#pragma unroll 1
      for (std::uint32_t bits = reach >> 4 * q & 15; bits != 0; bits &= bits - 1, ++at) {
        if (at < most_narrowed) ids[at] = list.id(e + __ffs(static_cast<int>(bits)) - 1);
      }
      start += total[q / 2] >> (q % 2 * 16) & 0xffff;
    }
    found += (total[0] & 0xffff) + (total[0] >> 16) + (total[1] & 0xffff) + (total[1] >> 16);
  }
  __syncthreads();
  return found <= most_narrowed ? static_cast<std::int32_t>(found) : -1;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
