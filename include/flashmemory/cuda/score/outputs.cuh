// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/core/ordered.cuh>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/cuda/score/job_cursor.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace scoring {
namespace detail {

using cuda::detail::ordered_key;
using cuda::detail::ordered_score;

/// Tiles whose survivors a block remembers in shared memory; of more it does in the workspace.
inline constexpr std::int32_t shared_tiles = 1024;

/// Where a block notes which keys of its tiles are above the threshold: 8 bytes per tile, bit n is key n.
struct survivor_mask {
  std::uint8_t* shared;  // [shared_tiles, 8]
  std::uint8_t* global;  // [capacity, 8], by tile of all jobs
  std::int32_t capacity;
  std::int32_t first;  // tile of the block

  __device__ std::uint8_t* of(std::int32_t tile) const {
    if (tile - first < shared_tiles) return shared + std::int64_t{tile - first} * 8;
    return tile < capacity ? global + std::int64_t{tile} * 8 : nullptr;
  }
};

/// What a job wants, in registers.
struct job_outputs {
  float* logits;
  float* group_max;
  float* chunk_max;
  float threshold;
  std::int32_t count;
};

__device__ __forceinline__ job_outputs outputs_of(const score_job& job, bool above) {
  const float nothing = __uint_as_float(0x7fc00000u);  // no logit is larger than NaN
  return {job.logits, job.group_max, job.chunk_max, above ? job.threshold : nothing,
          static_cast<std::int32_t>(count_of(job))};
}

/// The larger of a score and what is there. The bits of floats >= 0 order like ints, those of floats < 0 the
/// other way round like unsigneds; 0x7fffffff, a NaN, beats both ways. Starts from -inf, so the order of
/// calls cannot matter.
__device__ __forceinline__ void raise_to(float* at, std::uint32_t bits) {
  if (bits & 0x80000000u) {
    atomicMin(reinterpret_cast<unsigned*>(at), bits);
  } else {
    atomicMax(reinterpret_cast<int*>(at), static_cast<int>(bits));
  }
}

/// Bits of a chunk's maximum: NaN is the largest, unlike in selection.
__device__ __forceinline__ std::uint32_t chunk_key(float logit) {
  return isnan(logit) ? ~0u : ordered_key(logit);
}
__device__ __forceinline__ void raise_chunk(float* at, std::uint32_t key) {
  raise_to(at, key == ~0u ? 0x7fffffffu : __float_as_uint(ordered_score(key)));
}

/// Remembers which of a warp's 16 keys are above the threshold; lanes 16 .. 31 repeat the others.
__device__ __forceinline__ void note_survivors(const survivor_mask& mask, std::int32_t tile, int warp,
                                               bool survives) {
  const unsigned votes = __ballot_sync(~0u, survives);
  std::uint8_t* const at = mask.of(tile);
  if (threadIdx.x % 32 == 0 && at != nullptr) {
    reinterpret_cast<std::uint16_t*>(at)[warp] = static_cast<std::uint16_t>(votes);
  }
}

/// Maxima of 16 consecutive keys in one page; lanes 16 .. 31 repeat the others.
/// \param tile  of the job
__device__ __forceinline__ void reduce_16(const job_outputs& out, std::int32_t key, std::int32_t tile,
                                          std::int32_t page_keys, float logit) {
  const bool valid = key < out.count;
  if (out.group_max != nullptr) {
    const std::uint32_t best = __reduce_max_sync(~0u, valid ? ordered_key(logit) : 0);
    if (threadIdx.x % 32 == 0 && valid) out.group_max[key / score_group] = ordered_score(best);
  }
  if (out.chunk_max != nullptr) {
    const std::uint32_t best = __reduce_max_sync(~0u, valid ? chunk_key(logit) : 0);
    if (threadIdx.x % 32 == 0 && valid) {
      raise_chunk(out.chunk_max + (page_keys == tile_keys ? tile : key / page_keys), best);
    }
  }
}

/// All outputs of 32 consecutive keys, one a lane.
__device__ __forceinline__ void write_32(const job_outputs& out, std::int32_t key, std::int32_t page_keys,
                                         float logit, std::uint8_t* mask) {
  const int lane = threadIdx.x % 32;
  const bool valid = key < out.count;
  if (out.logits != nullptr && valid) out.logits[key] = logit;
  if (mask != nullptr) {
    const unsigned votes = __ballot_sync(~0u, valid && logit > out.threshold);
    if (lane == 0) *reinterpret_cast<std::uint32_t*>(mask + key % tile_keys / 8) = votes;
  }
  if (out.group_max != nullptr) {
    std::uint32_t best = valid ? ordered_key(logit) : 0;
    for (int d = 8; d > 0; d /= 2) best = max(best, __shfl_xor_sync(~0u, best, d));
    if (lane % score_group == 0 && valid) out.group_max[key / score_group] = ordered_score(best);
  }
  if (out.chunk_max != nullptr && valid) raise_chunk(out.chunk_max + key / page_keys, chunk_key(logit));
}

/// What blocks tell each other about `above`. Tags are those of one launch and nonzero, so that nothing has
/// to be cleared between launches.
struct survivor_board {
  unsigned long long*
      words;  // score_options::counters: [0] launches and arrivals, [1 + block] tag and survivors

  /// By one lane of each block, as early as possible: its answer takes a while.
  __device__ std::uint32_t join(std::int32_t blocks) const {
    const unsigned long long seen = atomicAdd(words, 1ull);
    const auto launch = static_cast<std::uint32_t>(seen >> 32);
    if (static_cast<std::uint32_t>(seen) + 1 == static_cast<std::uint32_t>(blocks)) {  // all have joined
      std::uint32_t next = launch + 1;
      if (next == ~0u) next = 0;  // launch + 1 is the tag, never 0
      atomicExch(words, static_cast<unsigned long long>(next) << 32);
    }
    return launch + 1;
  }

  __device__ void publish(std::int32_t block, std::uint32_t tag, std::int32_t survivors) const {
    const unsigned long long word =
        static_cast<unsigned long long>(tag) << 32 | static_cast<std::uint32_t>(survivors);
    ptx::store_relaxed(words + 1 + block, word);
  }

  /// Sum of what blocks first .. last - 1 publish; by a warp. Asks for many at once: each answer takes a
  /// while.
  __device__ std::int32_t await(std::int32_t first, std::int32_t last, std::uint32_t tag) const {
    constexpr int unroll = 5;  // 160 blocks
    std::uint32_t sum = 0;
    for (std::int32_t base = first; base < last; base += 32 * unroll) {
      unsigned long long seen[unroll];
      bool all;
      do {
        all = true;
#pragma unroll
        for (int i = 0; i < unroll; ++i) {
          const std::int32_t block = base + 32 * i + static_cast<std::int32_t>(threadIdx.x % 32);
          seen[i] = static_cast<unsigned long long>(tag) << 32;
          if (block < last) seen[i] = ptx::load_relaxed(words + 1 + block);
        }
#pragma unroll
        for (int i = 0; i < unroll; ++i) all = all && static_cast<std::uint32_t>(seen[i] >> 32) == tag;
      } while (!all);
#pragma unroll
      for (int i = 0; i < unroll; ++i) sum += static_cast<std::uint32_t>(seen[i]);
    }
    return static_cast<std::int32_t>(__reduce_add_sync(~0u, sum));
  }
};

struct survivor_scratch {
  std::int32_t warp_sums[32];
  std::int32_t base;
};

/// Turns the masks of a block's tiles into the jobs' ascending lists, by kThreads threads from 0 on, after
/// the masks are visible to all of them. A list that began in earlier blocks continues behind what those
/// found, which they publish; that waits for blocks of lower index only, which the hardware starts first.
/// \param cursor at the start, in every warp
/// \param tag    what board.join() gave; matters in thread 0
/// \param sync   barrier of these threads
template <int kThreads, class Sync>
__device__ __forceinline__ void write_survivors(const score_job* jobs, std::int32_t num_jobs,
                                                job_cursor cursor, const survivor_mask& mask,
                                                const survivor_board& board, std::uint32_t tag,
                                                survivor_scratch& scratch, const Sync& sync) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const auto block = static_cast<std::int32_t>(blockIdx.x), blocks = static_cast<std::int32_t>(gridDim.x);
  const std::int32_t first = cursor.first_of(block, blocks);
  const std::int32_t last = cursor.first_of(block + 1, blocks);
  if (block == 0) {
    for (std::int32_t j = thread; j < num_jobs; j += kThreads) {
      if (count_of(jobs[j]) <= 0 && jobs[j].above_count != nullptr) *jobs[j].above_count = 0;
    }
  }
  if (first == last) {
    if (thread == 0) board.publish(block, tag, 0);
    return;
  }
  const auto bits_of = [&](std::int32_t tile) -> unsigned long long {
    const std::uint8_t* const at = mask.of(tile);
    return at != nullptr ? *reinterpret_cast<const unsigned long long*>(at) : 0;
  };
  // The part of a job's list that comes from tiles [from, to); each thread owns consecutive ones.
  const auto list_part = [&](const job_cursor& at, std::int32_t from, std::int32_t to, bool publish) {
    const std::int32_t per_thread = (to - from + kThreads - 1) / kThreads;
    const std::int32_t mine = min(from + thread * per_thread, to), end = min(mine + per_thread, to);
    std::int32_t found = 0;
    for (std::int32_t tile = mine; tile < end; ++tile) found += __popcll(bits_of(tile));
    std::int32_t sum = found;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const std::int32_t below = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += below;
    }
    if (lane == 31) scratch.warp_sums[warp] = sum;
    sync();
    const std::int32_t warps = lane < kThreads / 32 ? scratch.warp_sums[lane] : 0;
    const auto total = static_cast<std::int32_t>(__reduce_add_sync(~0u, warps));
    std::int32_t position =
        sum - found + static_cast<std::int32_t>(__reduce_add_sync(~0u, lane < warp ? warps : 0));
    if (publish && thread == 0) board.publish(block, tag, total);
    std::int32_t base = 0;
    if (at.begin < from) {
      if (warp == 0) {
        base = board.await(at.block_of(at.begin, blocks), block, __shfl_sync(~0u, tag, 0));
        if (lane == 0) scratch.base = base;
      }
      sync();
      base = scratch.base;
    }
    position += base;
    const score_job& job = jobs[at.job];
    std::int32_t* const list = job.above;
    const std::int64_t capacity = list != nullptr ? job.above_capacity : 0;
    for (std::int32_t tile = mine; tile < end; ++tile) {
      for (unsigned long long bits = bits_of(tile); bits != 0; bits &= bits - 1, ++position) {
        const std::int32_t key = (tile - at.begin) * tile_keys + __ffsll(static_cast<long long>(bits)) - 1;
        if (position < capacity) list[position] = key;
      }
    }
    if (to == at.end && thread == 0 && job.above_count != nullptr) *job.above_count = base + total;
    sync();  // the scratch is free
  };
  job_cursor back = cursor;  // the last part first: others wait for it
  back.seek(last - 1);
  const std::int32_t last_part = max(back.begin, first);
  list_part(back, last_part, last, true);
  for (std::int32_t tile = first; tile < last_part; tile = cursor.end) {
    cursor.seek(tile);
    list_part(cursor, tile, cursor.end, false);
  }
}

}  // namespace detail
}  // namespace scoring
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
