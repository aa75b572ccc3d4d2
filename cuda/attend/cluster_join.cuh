// SPDX-License-Identifier: MIT
#pragma once

#include "attend/combine.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Where the blocks of a cluster, each with one split of the same tile, meet. Every block arrives at every
/// block's.
struct cluster_barriers {
  std::uint64_t ready;  // all states are complete
  std::uint64_t read;   // this block's state has been read

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ void init(std::int32_t blocks) {
    ptx::barrier_init(&ready, std::uint32_t(blocks));
    ptx::barrier_init(&read, std::uint32_t(blocks));
  }
#endif
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The joins of a block, one after another; by the first tile_threads threads of every block of the cluster
/// alike. A join through global memory takes three round trips to the L2 cache, this one two between
/// multiprocessors, and the blocks share the work.
class cluster_turn {
 public:
  __device__ explicit cluster_turn(std::int32_t blocks) : blocks_(blocks) {}

  /// Before this block's state is overwritten.
  __device__ void begin(cluster_barriers& barriers) const {
    if (turns_ > 0) ptx::cluster_wait(&barriers.read, (turns_ - 1) & 1);
  }

  /// Writes this block's share of the output: the elements whose splits it has joined, in the order of the
  /// splits. The block of rank s has split s; `state` is complete and visible to these threads.
  __device__ void join(const attend_call& call, cluster_barriers& barriers, const tile_rows_of_call& tile,
                       std::int32_t splits, const tile_state& state) {
    const std::int32_t rank = std::int32_t(blockIdx.x) % blocks_, thread = std::int32_t(threadIdx.x);
    if (thread < blocks_) ptx::cluster_arrive(ptx::cluster_address(&barriers.ready, std::uint32_t(thread)));
    ptx::cluster_wait(&barriers.ready, turns_ & 1);
    const std::int32_t elements = tile.count * call.value_dim, share = (elements + blocks_ - 1) / blocks_;
    const std::int32_t end = min(rank * share + share, elements);
    for (std::int32_t i = rank * share + thread; i < end; i += tile_threads) {
      const std::int32_t r = i / call.value_dim;
      float maxima[max_cluster], sums[max_cluster], values[max_cluster], top = -INFINITY;
#pragma unroll
      for (std::int32_t s = 0; s < max_cluster; ++s) {  // all under way at once
        maxima[s] = s < splits ? ptx::cluster_load(ptx::cluster_address(state.maximum + r, s)) : -INFINITY;
        sums[s] = s < splits ? ptx::cluster_load(ptx::cluster_address(state.sum + r, s)) : 0.0f;
        values[s] = s < splits ? ptx::cluster_load(ptx::cluster_address(state.values + i, s)) : 0.0f;
      }
#pragma unroll
      for (std::int32_t s = 0; s < max_cluster; ++s) top = fmaxf(top, maxima[s]);
      float total = 0, value = 0;
#pragma unroll
      for (std::int32_t s = 0; s < max_cluster; ++s) {
        const float weight = maxima[s] == -INFINITY ? 0.0f : ptx::exp2(maxima[s] - top);
        total += sums[s] * weight;
        value += values[s] * weight;
      }
      write_element(call, tile, r, i % call.value_dim, top, total, value);
    }
    tile_barrier();
    if (thread < blocks_) ptx::cluster_arrive(ptx::cluster_address(&barriers.read, std::uint32_t(thread)));
    ++turns_;
  }

  /// Before this block ends, and its shared memory with it.
  __device__ void end(cluster_barriers& barriers) const { begin(barriers); }

 private:
  std::int32_t blocks_;
  std::uint32_t turns_ = 0;
};

#endif

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
