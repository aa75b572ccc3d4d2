// SPDX-License-Identifier: MIT
#pragma once

// Selection within one block of 512 threads. Every thread owns consecutive elements, so that a scan over the
// threads gives positions in ascending order, and keeps their keys in shared memory, where nobody else looks.
// Loops are left rolled and there is one copy of everything: a block runs this code once or twice, and
// fetching instructions is a good part of its time.

#include <cstdint>
#include <flashmemory/cuda/core/ordered.cuh>
#include <flashmemory/cuda/core/ptx.cuh>
#include <flashmemory/cuda/score.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace top_k {
namespace detail {

using cuda::detail::ordered_key;
using cuda::detail::ordered_score;

inline constexpr int select_threads = 512;
inline constexpr int select_warps = select_threads / 32;
/// Fours of elements that a thread has at a time, if shared memory suffices.
inline constexpr int most_quads = 8;
inline constexpr int radix_bits = 11;
inline constexpr int bins = 1 << radix_bits;
static_assert(bins == 4 * select_threads, "each thread owns four bins");
/// Keys of one bin that are few enough to be compared with each other.
inline constexpr std::uint32_t most_candidates = 64;

struct select_state {
  std::uint32_t histogram[bins];  // zero between rounds
  std::uint32_t warp_sums[2][select_warps];
  std::uint32_t lows[select_warps], highs[select_warps];
  std::uint32_t candidates[most_candidates];
  std::uint32_t num_candidates;
  std::uint32_t bin, above, count;
  std::uint32_t least, skipped;
};

/// Elements to select from: scores 0 .. count - 1, or those of some groups of 16, one group after another.
struct element_list {
  const float* scores;
  std::int32_t limit;          ///< scores in the row
  const std::int32_t* groups;  ///< ascending, or null
  std::int32_t count;          ///< elements; with groups 16 for each, and those beyond `limit` are none

  __device__ std::int32_t id(std::int32_t e) const {
    return groups != nullptr ? groups[e / score_group] * score_group + e % score_group : e;
  }
};

/// Sum over the threads before this one, and over all in `total`. Between two calls with the same `turn` all
/// threads must have met.
__device__ __forceinline__ std::uint32_t scan_exclusive(std::uint32_t value, select_state& state, int turn,
                                                        std::uint32_t& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  std::uint32_t sum = value;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const std::uint32_t below = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += below;
  }
  if (lane == 31) state.warp_sums[turn][warp] = sum;
  __syncthreads();
  const std::uint32_t mine = lane < select_warps ? state.warp_sums[turn][lane] : 0;
  total = __reduce_add_sync(~0u, mine);
  return sum - value + __reduce_add_sync(~0u, lane < warp ? mine : 0);
}

/// Brings the keys of `4 * quads` elements from `begin` on to `to`, a quad every select_threads places.
inline __device__ __noinline__ void load_keys(const element_list list, std::int32_t begin, int quads,
                                              uint4* to) {
  const bool whole = reinterpret_cast<std::uintptr_t>(list.scores) % 16 == 0;
#pragma unroll 1
  for (int q = 0; q < quads; ++q) {  // raw scores by way of the copy unit, all under way at once
    const std::int32_t e = begin + 4 * q;
    if (e >= list.count) break;
    const std::int32_t id = list.id(e);
    const ptx::shared_address at(to + q * select_threads);
    if (whole && id + 3 < list.limit) {
      ptx::copy_async_16(at, list.scores + id);
    } else {
#pragma unroll 1
      for (int i = 0; i < 4 && id + i < list.limit; ++i) {
        ptx::copy_async_4(at + 4 * i, list.scores + id + i);
      }
    }
  }
  ptx::wait_for_copies();
#pragma unroll 1
  for (int q = 0; q < quads; ++q) {
    const std::int32_t e = begin + 4 * q;
    const std::int32_t id = e < list.count ? list.id(e) : list.limit;
    const uint4 raw = to[q * select_threads];
    uint4 keys;
    keys.x = id < list.limit ? ordered_key(__uint_as_float(raw.x)) : 0;
    keys.y = id + 1 < list.limit ? ordered_key(__uint_as_float(raw.y)) : 0;
    keys.z = id + 2 < list.limit ? ordered_key(__uint_as_float(raw.z)) : 0;
    keys.w = id + 3 < list.limit ? ordered_key(__uint_as_float(raw.w)) : 0;
    to[q * select_threads] = keys;
  }
}

/// The keys of a list, in batches of what is resident: 4 * max_quads a thread.
class block_keys {
 public:
  __device__ block_keys(const element_list& list, uint4* keys, int max_quads)
      : list_(list),
        mine_(keys + threadIdx.x),
        batch_(4 * max_quads * select_threads),
        batches_((list.count + batch_ - 1) / batch_),
        quads_(batches_ > 1 ? max_quads : (list.count + 4 * select_threads - 1) / (4 * select_threads)) {
    load_keys(list_, first(0), quads_, mine_);
  }

  __device__ std::int32_t batches() const { return batches_; }
  __device__ std::int32_t quads() const { return quads_; }
  /// Threads that have elements in all batches.
  __device__ std::int32_t owners() const {
    return batches_ > 1 ? select_threads : (list_.count + 4 * quads_ - 1) / (4 * quads_);
  }
  __device__ std::int32_t id(std::int32_t e) const { return list_.id(e); }

  /// First element of this thread in a batch.
  __device__ std::int32_t first(std::int32_t batch) const {
    return batch * batch_ + static_cast<std::int32_t>(threadIdx.x) * 4 * quads_;
  }

  /// Calls f(key) for every element of this thread, 0 where there is none.
  template <class Function>
  __device__ __forceinline__ void for_each(const Function& f) const {
#pragma unroll 1
    for (std::int32_t batch = 0; batch < batches_; ++batch) {
      hold(batch);
#pragma unroll 1
      for (int q = 0; q < quads_; ++q) {
        const uint4 four = quad(q);
        for (const std::uint32_t key : {four.x, four.y, four.z, four.w}) f(key);
      }
    }
  }

  /// Makes a batch the one that quad() shows.
  __device__ __forceinline__ void hold(std::int32_t batch) const {
    if (batches_ > 1) load_keys(list_, first(batch), quads_, mine_);
  }

  /// Keys of four of this thread's elements; 0 where there is none.
  __device__ uint4 quad(int q) const { return mine_[q * select_threads]; }

 private:
  const element_list list_;
  uint4* const mine_;
  const std::int32_t batch_;  // elements
  const std::int32_t batches_;
  const std::int32_t quads_;
};

/// Which keys are selected: all from `least` on, except that of those equal to `least` the `skipped` oldest
/// are not.
struct cutoff {
  std::uint32_t least = 0;
  std::uint32_t skipped = 0;
};

/// Writes the ids of the selected elements, ascending, as far as there is room. Returns how many there are.
template <class Elements>
__device__ __forceinline__ std::uint32_t emit(const Elements& elements, const cutoff& cut,
                                              select_state& state, std::int32_t* ids, std::int64_t capacity,
                                              std::int32_t first_id = 0) {
  std::uint32_t larger_before = 0, equal_before = 0;
#pragma unroll 1
  for (std::int32_t batch = 0; batch < elements.batches(); ++batch) {
    elements.hold(batch);
    std::uint32_t counts = 0;  // larger in the upper half, equal in the lower; at most 2^15 each
#pragma unroll 1
    for (int q = 0; q < elements.quads(); ++q) {
      const uint4 four = elements.quad(q);
      for (const std::uint32_t key : {four.x, four.y, four.z, four.w}) {
        counts += key > cut.least ? 1u << 16 : key == cut.least ? 1u : 0u;
      }
    }
    std::uint32_t total;
    const std::uint32_t before = scan_exclusive(counts, state, batch % 2, total);
    std::uint32_t larger = larger_before + (before >> 16), equal = equal_before + (before & 0xffff);
    if (counts != 0) {
      const std::int32_t first = elements.first(batch);
#pragma unroll 1
      for (int q = 0; q < elements.quads(); ++q) {
        const uint4 four = elements.quad(q);
        if (max(max(four.x, four.y), max(four.z, four.w)) < cut.least) continue;
        std::int32_t e = first + 4 * q;
        for (const std::uint32_t key : {four.x, four.y, four.z, four.w}) {
          if (key >= cut.least) {
            const std::uint32_t at = larger + (equal > cut.skipped ? equal - cut.skipped : 0);
            const bool tie = key == cut.least;
            if ((!tie || equal >= cut.skipped) && at < capacity) ids[at] = first_id + elements.id(e);
            tie ? ++equal : ++larger;
          }
          ++e;
        }
      }
    }
    larger_before += total >> 16;
    equal_before += total & 0xffff;
  }
  return larger_before + (equal_before > cut.skipped ? equal_before - cut.skipped : 0);
}

/// Of a complete histogram: the bin in which the `need`-th largest is, how many are above and how many in it.
/// Leaves the histogram zero. Returns how many there are; if fewer than `need`, the rest says nothing.
__device__ __forceinline__ std::uint32_t find_bin(std::uint32_t need, select_state& state) {
  const int thread = static_cast<int>(threadIdx.x);
  // From the highest bin down, four bins a thread.
  uint4& mine = reinterpret_cast<uint4*>(state.histogram)[select_threads - 1 - thread];
  const uint4 counts = mine;
  mine = uint4{0, 0, 0, 0};
  std::uint32_t total;
  std::uint32_t above = scan_exclusive(counts.x + counts.y + counts.z + counts.w, state, 0, total);
  std::uint32_t bin = static_cast<std::uint32_t>(4 * (select_threads - 1 - thread)) + 3;
  for (const std::uint32_t count : {counts.w, counts.z, counts.y, counts.x}) {
    if (above < need && need <= above + count) {
      state.bin = bin;
      state.above = above;
      state.count = count;
    }
    above += count;
    --bin;
  }
  __syncthreads();
  return total;
}

/// Least and largest of the threads' values.
__device__ __forceinline__ void find_range(std::uint32_t& low, std::uint32_t& high, select_state& state) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  low = __reduce_min_sync(~0u, low);
  high = __reduce_max_sync(~0u, high);
  if (lane == 0) {
    state.lows[warp] = low;
    state.highs[warp] = high;
  }
  __syncthreads();
  low = __reduce_min_sync(~0u, state.lows[lane % select_warps]);
  high = __reduce_max_sync(~0u, state.highs[lane % select_warps]);
}

/// Keys from the least to the largest.
struct key_range {
  std::uint32_t least, largest;
};

/// The cutoff that selects the `k` largest elements, of equal ones the last; 0 < k <= the number of elements.
/// Narrows an interval of keys that the k-th largest is in, 11 bits a round. The first round starts from what
/// the keys span, so usually the few keys of its bin can be compared with each other.
/// \param known what they span at most, or null; if not, the histogram is zero
template <class Elements>
__device__ __forceinline__ cutoff find_cutoff(const Elements& elements, std::uint32_t k, select_state& state,
                                              const key_range* known = nullptr) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) state.num_candidates = 0;
  std::uint32_t low = ~0u, high = 0;
  if (known != nullptr) {
    low = known->least;
    high = known->largest;
  } else {
    reinterpret_cast<uint4*>(state.histogram)[thread] = uint4{0, 0, 0, 0};
    elements.for_each([&](std::uint32_t key) {
      low = min(low, key - 1);  // 0 becomes the largest
      high = max(high, key);
    });
    ++low;
    // If as many threads have elements as are wanted, none below the least of their maxima can be selected.
    if (k <= static_cast<std::uint32_t>(elements.owners())) low = high;
    if (low == 0) low = ~0u;
    find_range(low, high, state);
  }

  const ptx::shared_address histogram(state.histogram);
  std::uint32_t span = high - low;  // of the interval, less one
  std::uint32_t need = k;           // of the keys in it
  for (;;) {
    const int shift = max(32 - __clz(static_cast<int>(span)) - radix_bits, 0);
    // What is below `low` wraps around to more than `span`, as no key is that close to 2^32.
    elements.for_each([&](std::uint32_t key) {
      ptx::count_shared_if(key - low <= span, histogram + ((key - low) >> shift) * 4);
    });
    __syncthreads();
    find_bin(need, state);
    low += state.bin << shift;
    span = (1u << shift) - 1;
    need -= state.above;
    const std::uint32_t here = state.count;
    if (shift == 0) return {low, here - need};
    if (here == need) return {low - 1, ~0u};  // all of the bin; low - 1 itself is not selected
    if (here <= most_candidates) break;
  }
  const std::uint32_t here = state.count;
  elements.for_each([&](std::uint32_t key) {
    if (key - low <= span) state.candidates[atomicAdd(&state.num_candidates, 1u)] = key;
  });
  __syncthreads();
  if (static_cast<std::uint32_t>(thread) < here) {
    const std::uint32_t key = state.candidates[thread];
    std::uint32_t larger = 0, equal = 0;
#pragma unroll 4
    for (std::uint32_t i = 0; i < here; ++i) {
      larger += state.candidates[i] > key ? 1 : 0;
      equal += state.candidates[i] == key ? 1 : 0;
    }
    if (larger < need && need <= larger + equal) {  // so for all candidates that equal this one
      state.least = key;
      state.skipped = larger + equal - need;
    }
  }
  __syncthreads();
  return {state.least, state.skipped};
}

}  // namespace detail
}  // namespace top_k
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
