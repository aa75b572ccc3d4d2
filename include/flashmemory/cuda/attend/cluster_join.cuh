// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/finish.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

static_assert(max_cluster == 2, "the blocks of a cluster are a pair");

/// Where the two blocks of a cluster, each with one split of the same tile, put what the other one needs: the values of
/// half of the tile's elements, and of every row the maximum and the sum.
template <int kDim>
struct pair_mail {
  float values[2][tile_rows * kDim / 2];  // by turn, even and odd
  float maximum[2][tile_rows], sum[2][tile_rows];
  std::uint64_t ready[2];  // all of it has landed

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ void init() {
    ptx::barrier_init(ready, 1);
    ptx::barrier_init(ready + 1, 1);
  }
#endif
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The joins of a block, one after another; by the first tile_threads threads of both blocks alike. A join through
/// global memory takes three round trips to the L2 cache, this one a single trip between multiprocessors, and the
/// blocks share the work.
///
/// Nobody says that a place is free. A block that sends for turn t + 2 has what the other one sent for turn t + 1, who
/// did so after reading what had been sent for turn t, from the same place. And since a block sends nothing but what
/// the other one waits for, each may end after its own last turn.
class pair_turn {
 public:
  /// Writes this block's half of the output: the elements whose splits it has joined, in the order of the splits. The
  /// block of rank s has split s; `state` is complete and visible to these threads, and stays until all of them have
  /// met again.
  template <int kDim, class Call>
  __device__ void join(const Call& call, pair_mail<kDim>& mail, const tile_rows_of_call& tile,
                       const tile_state& state) {
    const std::int32_t rank = std::int32_t(blockIdx.x) % 2, thread = std::int32_t(threadIdx.x);
    const std::int32_t place = std::int32_t(turns_ % 2), half = tile.count * kDim / 2;
    const auto other = std::uint32_t(1 - rank);
    const ptx::cluster_address ready = ptx::in_block(mail.ready + place, other);
    const auto send = [&](float* to, const float* from) {
      ptx::cluster_send(ptx::in_block(to, other), *reinterpret_cast<const float4*>(from), ready);
    };
    if (thread == 0) ptx::barrier_arrive_expect(mail.ready + place, std::uint32_t(half + 2 * tile_rows) * 4);
    for (std::int32_t i = 4 * thread; i < half; i += 4 * tile_threads)
      send(mail.values[place] + i, state.values + (1 - rank) * half + i);
    if (thread < tile_rows / 4)
      send(mail.maximum[place] + 4 * thread, state.maximum + 4 * thread);
    else if (thread < tile_rows / 2)
      send(mail.sum[place] + 4 * thread - tile_rows, state.sum + 4 * thread - tile_rows);
    ptx::cluster_wait(mail.ready + place, turns_ / 2 & 1);

    // Of own and sent, what belongs to the split.
    const auto of_split = [&](std::int32_t split, float own, float sent) {
      return split == rank ? own : sent;
    };
    for (std::int32_t i = thread; i < half; i += tile_threads) {
      const std::int32_t at = rank * half + i, r = at / kDim;
      const float top = fmaxf(state.maximum[r], mail.maximum[place][r]);
      float total = 0, value = 0;
#pragma unroll
      for (std::int32_t s = 0; s < 2; ++s) {
        const float maximum = of_split(s, state.maximum[r], mail.maximum[place][r]);
        const float weight = maximum == -INFINITY ? 0.0f : ptx::exp2(maximum - top);
        total += of_split(s, state.sum[r], mail.sum[place][r]) * weight;
        value += of_split(s, state.values[at], mail.values[place][i]) * weight;
      }
      write_element(call, tile, r, at % kDim, top, total, value);
    }
    ++turns_;
  }

 private:
  std::uint32_t turns_ = 0;
};

#endif

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
