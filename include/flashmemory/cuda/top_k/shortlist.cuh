// SPDX-License-Identifier: MIT
#pragma once

// The quick way to a few candidates for a row's top-k, by a cluster of blocks. Every thread has a few consecutive
// elements; the k-th largest of the threads' maxima is no more than the k-th largest element, so only elements that
// reach it can be selected; usually that leaves little more than k. All blocks learn all threads' maxima - they read
// a short row whole, which is quicker than telling each other - and find the same bound, each collects what reaches it
// in its part of the row, and the first block gets the candidates of all.
// One block would take longer for two reasons: the scans and searches cost instructions of every warp, and a
// multiprocessor has issue slots for four warps.

#include <cstdint>
#include <flashmemory/cuda/core/ptx.cuh>
#include <flashmemory/cuda/top_k/block_select.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace top_k {
namespace detail {

/// Parts of a row, dealt out to the blocks of a cluster: as many as blocks where there are clusters.
inline constexpr int slices = 8;
inline constexpr int thread_maxima = slices * select_threads;
/// Candidates that there is room for, of a block and of all.
inline constexpr std::int32_t most_of_block = 4096;
/// Those of each slice if they are few, as they usually are.
inline constexpr std::int32_t most_of_slice = most_of_block / slices;

/// Blocks of a launch that each read all maxima of a row.
inline constexpr unsigned most_readers = 32;

/// In dynamic shared memory.
struct shortlist_memory {
  union {  // the maxima are done with when the list begins
    std::uint32_t maxima[thread_maxima];
    struct {  // of this block
      std::uint32_t keys[most_of_block];
      std::int32_t ids[most_of_block];
    } mine;
  };
  struct {  // of all blocks, in the first one
    std::uint32_t keys[most_of_block];
    std::int32_t ids[most_of_block];
  } all;
};

/// Candidates as elements, in one list or one for each slice, ascending. Every warp has a part of one list.
class listed_keys {
 public:
  /// \param places of each list
  /// \param counts candidates in each
  __device__ listed_keys(const shortlist_memory& memory, std::int32_t places, const std::int32_t* counts) {
    const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x / 32);
    const std::int32_t sharers = select_warps * places / most_of_block, list = warp / sharers;
    const std::int32_t part = (counts[list] + 32 * sharers - 1) / (32 * sharers) * 32;
    const std::int32_t begin = warp % sharers * part;
    count_ = min(counts[list] - begin, part);
    keys_ = memory.all.keys + list * places + begin;
    ids_ = memory.all.ids + list * places + begin;
  }

  __device__ std::int32_t owners() const { return 0; }  // how many is not known
  template <class Function>
  __device__ __forceinline__ void for_each(const Function& f) const {
#pragma unroll 1
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x % 32); i < count_; i += 32) f(keys_[i]);
  }

  /// As emit() of block_select.cuh.
  __device__ __forceinline__ void emit(const cutoff& cut, select_state& state, std::int32_t* ids,
                                       std::int32_t first_id) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::uint32_t before_me = (1u << lane) - 1;
    std::uint32_t counts = 0;  // larger in the upper half, equal in the lower
#pragma unroll 1
    for (std::int32_t i = lane; i - lane < count_; i += 32) {
      const std::uint32_t key = i < count_ ? keys_[i] : 0;
      counts +=
          __popc(__ballot_sync(~0u, key > cut.least)) << 16 | __popc(__ballot_sync(~0u, key == cut.least));
    }
    if (lane == 0) state.warp_sums[0][warp] = counts;
    __syncthreads();
    const std::uint32_t before =
        __reduce_add_sync(~0u, lane < warp && lane < select_warps ? state.warp_sums[0][lane] : 0);
    std::uint32_t larger = before >> 16, equal = before & 0xffff;
#pragma unroll 1
    for (std::int32_t i = lane; i - lane < count_; i += 32) {
      const std::uint32_t key = i < count_ ? keys_[i] : 0;
      const unsigned larger_here = __ballot_sync(~0u, key > cut.least);
      const unsigned equal_here = __ballot_sync(~0u, key == cut.least);
      const std::uint32_t equal_before = equal + __popc(equal_here & before_me);
      if (key > cut.least || (key == cut.least && equal_before >= cut.skipped)) {
        ids[larger + __popc(larger_here & before_me) +
            (equal_before > cut.skipped ? equal_before - cut.skipped : 0)] = first_id + ids_[i];
      }
      larger += __popc(larger_here);
      equal += __popc(equal_here);
    }
  }

 private:
  const std::uint32_t* keys_;
  const std::int32_t* ids_;
  std::int32_t count_;  // none if negative
};

/// What blocks of a cluster do together.
template <int kBlocks>
struct block_cluster {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ static int rank() { return static_cast<int>(blockIdx.x) % kBlocks; }
  /// Announces that this block has started, to be followed by a wait().
  __device__ static void arrive() { ptx::cluster_arrive_all(); }
  __device__ static void wait() { ptx::cluster_wait_all(); }
  /// What was stored anywhere in the cluster before is visible after.
  __device__ static void sync() {
    arrive();
    wait();
  }
  template <class T>
  __device__ static void store(T* at, int block, T value) {
    ptx::cluster_store(ptx::in_block(at, static_cast<std::uint32_t>(block)),
                       static_cast<std::uint32_t>(value));
  }
#endif
};

/// What a block does alone.
template <>
struct block_cluster<1> {
  __device__ static int rank() { return 0; }
  __device__ static void arrive() {}
  __device__ static void wait() {}
  __device__ static void sync() { __syncthreads(); }
  template <class T>
  __device__ static void store(T* at, int, T value) {
    *at = value;
  }
};

/// How the elements of a list are dealt out: to slices, in each to the threads in turn, a run to each.
struct deal {
  std::int32_t run;      ///< elements of a thread at a time, 1 .. 4
  std::int32_t batches;  ///< turns of a slice

  __device__ explicit deal(std::int32_t count) {
    constexpr std::int32_t most = 4 * thread_maxima;
    run = count >= most ? 4 : (count + thread_maxima - 1) / thread_maxima;
    batches = (count + run * thread_maxima - 1) / (run * thread_maxima);
  }
  __device__ std::int32_t batch() const { return run * select_threads; }
  __device__ std::int32_t slice() const { return batches * batch(); }
};

/// `run` scores from element `e` on; NaN where there is none.
__device__ __forceinline__ float4 load_run(const element_list& list, std::int32_t e, std::int32_t run) {
  const float none = __uint_as_float(0x7fc00000u);
  float4 v{none, none, none, none};
  if (e >= list.count) return v;
  const std::int32_t id = list.id(e), left = min(run, list.limit - id);
  const float* const from = list.scores + id;
  if (left == 4 && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    return *reinterpret_cast<const float4*>(from);
  }
  if (left > 0) v.x = from[0];
  if (left > 1) v.y = from[1];
  if (left > 2) v.z = from[2];
  if (left > 3) v.w = from[3];
  return v;
}

/// Which of four values reach a bound.
__device__ __forceinline__ std::uint32_t reaching(const float4& v, float bound) {
  return (v.x >= bound ? 1u : 0u) | (v.y >= bound ? 2u : 0u) | (v.z >= bound ? 4u : 0u) |
         (v.w >= bound ? 8u : 0u);
}

/// Appends those of the scores at hand that reach the bound, ascending; all threads, once a batch.
template <int kBlocks>
struct collector {
  using cluster = block_cluster<kBlocks>;
  const float* scores;
  std::int32_t count;  ///< of the row
  float bound;
  shortlist_memory& memory;
  std::int32_t found = 0;  ///< be it more than there is room for
  int turn = 0;

  /// This thread's are those of `bits` from score `first` on.
  __device__ __forceinline__ void add(std::int32_t first, unsigned long long bits, select_state& state) {
    std::uint32_t total;
    const std::uint32_t before =
        scan_exclusive(static_cast<std::uint32_t>(__popcll(bits)), state, turn, total);
    turn ^= 1;
    std::int32_t at = found + static_cast<std::int32_t>(before);
#pragma unroll 1
    for (; bits != 0 && at < most_of_block; bits &= bits - 1, ++at) {
      const std::int32_t id = first + __ffsll(static_cast<long long>(bits)) - 1;
      const std::uint32_t key = ordered_key(scores[id]);  // again, from the L1 cache
      memory.mine.keys[at] = key;
      memory.mine.ids[at] = id;
      if (kBlocks == slices && at < most_of_slice) {  // where they have to be if they are few
        cluster::store(&memory.all.keys[cluster::rank() * most_of_slice + at], 0, key);
        cluster::store(&memory.all.ids[cluster::rank() * most_of_slice + at], 0, id);
      }
    }
    found += static_cast<std::int32_t>(total);
  }

  /// Scores of those of four groups from `group` on that `reach` names.
  __device__ __forceinline__ void add_groups(std::int32_t group, std::uint32_t reach, select_state& state) {
    unsigned long long bits = 0;
#pragma unroll 1
    for (; reach != 0; reach &= reach - 1) {
      const std::int32_t place = score_group * (__ffs(static_cast<int>(reach)) - 1);
      const element_list all{scores, count, nullptr, count};
      std::uint32_t sixteen = 0;
#pragma unroll
      for (int i = 0; i < score_group; i += 4)
        sixteen |= reaching(load_run(all, group * score_group + place + i, 4), bound) << i;
      bits |= static_cast<unsigned long long>(sixteen) << place;
    }
    add(group * score_group, bits, state);
  }
};

/// Brings the candidates for the `k` best of `count` scores, ascending, to the first block's `memory.all`, and how many
/// they are to `counts`. Returns the places of each of the lists there, or 0 in all blocks alike: too many candidates,
/// or too many NaNs to find a bound. Ends with all threads of the first block having met.
/// \param best   maxima of groups of 16 scores, or null: by way of the scores themselves
/// \param counts [slices], shared
/// \param[out] range least and largest key that a candidate can have
template <int kBlocks>
__device__ __forceinline__ std::int32_t shortlist(const float* scores, const float* best, std::int32_t count,
                                                  std::uint32_t k, select_state& state,
                                                  shortlist_memory& memory, std::int32_t* counts,
                                                  key_range& range) {
  using cluster = block_cluster<kBlocks>;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t num_groups = (count + score_group - 1) / score_group;
  const element_list all = best != nullptr ? element_list{best, num_groups, nullptr, num_groups}
                                           : element_list{scores, count, nullptr, count};
  const deal how(all.count);
  const int first_slice = cluster::rank() * (slices / kBlocks);
  reinterpret_cast<uint4*>(state.histogram)[thread] = uint4{0, 0, 0, 0};
  std::uint32_t tops[slices];
  float4 v;
  // Of many rows of maxima the blocks would wait for each other's reads.
  const bool short_row = how.batches == 1 && (best == nullptr || gridDim.x <= most_readers);
  if (short_row) {
    float4 runs[slices];
#pragma unroll
    for (int slice = 0; slice < slices; ++slice)
      runs[slice] = load_run(all, slice * how.slice() + thread * how.run, how.run);
#pragma unroll
    for (int slice = 0; slice < slices; ++slice) {
      const float4& r = runs[slice];
      const float top = fmaxf(fmaxf(r.x, r.y), fmaxf(r.z, r.w));
      tops[slice] = isnan(top) ? 0 : ordered_key(top);
      if (slice == first_slice) v = r;
    }
    cluster::wait();  // all blocks have started
  }
#pragma unroll 1
  for (int slice = first_slice; !short_row && slice < first_slice + slices / kBlocks; ++slice) {
    float top = __uint_as_float(0x7fc00000u);
#pragma unroll 1
    for (std::int32_t b = 0; b < how.batches; ++b) {
      v = load_run(all, slice * how.slice() + b * how.batch() + thread * how.run, how.run);
      top = fmaxf(top, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    }
    const std::uint32_t key = isnan(top) ? 0 : ordered_key(top);
    if (slice == first_slice) cluster::wait();  // all blocks have started
#pragma unroll
    for (int to = 0; to < kBlocks; ++to)
      cluster::store(&memory.maxima[slice * select_threads + thread], to, key);
  }
  if (short_row) {
    __syncthreads();  // the histogram is clear
  } else {
    cluster::sync();
#pragma unroll
    for (int slice = 0; slice < slices; ++slice) tops[slice] = memory.maxima[slice * select_threads + thread];
  }
  std::uint32_t low = ~0u, high = 0;
#pragma unroll
  for (const std::uint32_t key : tops) {
    low = min(low, key - 1);  // 0 becomes the largest
    high = max(high, key);
  }
  // If as many threads have elements as are wanted, none below the least of their largest can be selected.
  if (k <= select_threads && all.count >= select_threads) low = high - 1;
  find_range(low, high, state);
  if (high == 0) return 0;
  ++low;
  const int shift = max(32 - __clz(static_cast<int>(high - low)) - radix_bits, 0);
  const ptx::shared_address histogram(state.histogram);
#pragma unroll
  for (const std::uint32_t key : tops)  // what is below `low`, 0 included, wraps around
    ptx::count_shared_if(key - low <= high - low, histogram + ((key - low) >> shift) * 4);
  __syncthreads();
  if (find_bin(k, state) < k) return 0;
  range = {low + (state.bin << shift), high};
  const float bound = ordered_score(range.least);

  collector<kBlocks> candidates{scores, count, bound, memory};
#pragma unroll 1
  for (int slice = first_slice; slice < first_slice + slices / kBlocks; ++slice) {
#pragma unroll 1
    for (std::int32_t b = 0; b < how.batches && candidates.found <= most_of_block; ++b) {
      const std::int32_t e = slice * how.slice() + b * how.batch() + thread * how.run;
      if (kBlocks < slices || how.batches > 1) v = load_run(all, e, how.run);
      if (best != nullptr)
        candidates.add_groups(e, reaching(v, bound), state);
      else
        candidates.add(e, reaching(v, bound), state);
    }
  }
  const std::int32_t found = candidates.found <= most_of_block ? candidates.found : -1;

  if (thread < kBlocks) cluster::store(&counts[cluster::rank()], thread, found);
  cluster::sync();
  std::int32_t before = 0, total = 0;
  bool fits = true, few = kBlocks == slices;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const std::int32_t its = counts[block];
    fits = fits && its >= 0;
    few = few && its <= most_of_slice;
    if (block < cluster::rank()) before += its;
    total += its;
  }
  if (!fits || total > most_of_block) return 0;
  if (few) return most_of_slice;
#pragma unroll 1
  for (std::int32_t i = thread; i < found; i += select_threads) {
    cluster::store(&memory.all.keys[before + i], 0, memory.mine.keys[i]);
    cluster::store(&memory.all.ids[before + i], 0, memory.mine.ids[i]);
  }
  cluster::sync();
  if (thread == 0) counts[0] = total;
  __syncthreads();
  return most_of_block;
}

}  // namespace detail
}  // namespace top_k
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
