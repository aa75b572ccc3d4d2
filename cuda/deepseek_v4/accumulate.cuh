// SPDX-License-Identifier: MIT
#pragma once

// The accumulators of attend_sm90.cu: two warpgroups that multiply weights by entries, each with its half of the block's
// dims in registers.

#include "cuda/deepseek_v4/attend_sm90.cuh"
#include "cuda/deepseek_v4/fetch.cuh"
#include "cuda/deepseek_v4/join.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int kStages, int kRaw, int kParts>
struct attend_accumulator {
  using smem = attend_smem<kStages, kRaw>;
  static constexpr int dims = 256 / kParts, numbers = dims / 2;  ///< of the output: a warpgroup's, a thread's

  std::uint32_t base;  ///< of shared memory
  int tiles;

  /// Begins o += P V for the dims from `slab` on.
  __device__ __forceinline__ void multiply(float (&o)[numbers], int tile, int slab) const {
    const std::uint64_t a = ptx::mma_descriptor_64(base + smem::p + tile % 2 * smem::p_bytes, 512);
    const std::uint64_t b = ptx::mma_descriptor(
        base + smem::kv + tile % kStages * smem::tile + slab * smem::slab, smem::slab, 1024);
    ptx::mma_hold(o);
    ptx::mma_fence();
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      if constexpr (dims == 64) {
        ptx::mma_ss_n64<0>(o, a + step * 2, b + step * 128);
      } else {
        ptx::mma_ss_n128<0>(o, a + step * 2, b + step * 128);
        if constexpr (dims == 256)
          ptx::mma_ss_n128<64>(o, a + step * 2, b + step * 128 + 2 * smem::slab / 16);
      }
    }
    ptx::mma_commit();
  }

  __device__ __forceinline__ static void rescale_rows(float (&o)[numbers], float first, float second) {
    // Most tiles raise no row's maximum.
    if (!__any_sync(0xffffffffu, !(first == 1.0f && second == 1.0f))) return;
#pragma unroll
    for (int i = 0; i < numbers; i += 4) {
      o[i] *= first;
      o[i + 1] *= first;
      o[i + 2] *= second;
      o[i + 3] *= second;
    }
  }

  __device__ __forceinline__ void run(attend_fetcher<kStages, kRaw> fetcher,
                                      const attend_join<kStages, kRaw, kParts>& end) const {
    // Raw entries are asked for kAhead tiles before they are multiplied. That far nobody waits for this warpgroup: the
    // producers free the raw places of the next kStages tiles without it.
    constexpr int kAhead = kRaw + 3;
    static_assert(kAhead <= kRaw + kStages, "");
    for (int i = 0; i < kAhead; ++i) fetcher.next();
    const int lane = threadIdx.x % 32, thread = threadIdx.x % 128;
    float o[numbers];
#pragma unroll
    for (float& x : o) x = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      wait(base + smem::p_full + tile % 2 * 8, tile / 2 & 1);
      const std::uint32_t at = base + smem::rescale + (tile % 2 * 64 + thread / 32 * 16 + lane / 4) * 4;
      rescale_rows(o, load_shared_float(at), load_shared_float(at + 32));
      wait(base + smem::kv_full + tile % kStages * 8, tile / kStages & 1);
      multiply(o, tile, end.slab());
      ptx::mma_wait<0>();
      ptx::mma_hold(o);
      __syncwarp();
      if (lane == 0) {
        arrive(base + smem::kv_empty + tile % kStages * 8);
        arrive(base + smem::p_empty + tile % 2 * 8);
      }
      fetcher.next();
    }
    sync_threads<scorer_threads + accumulator_threads>(1);  // nobody multiplies any more; the stats are there
    end.finish(o);
  }
};

#endif

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
