// SPDX-License-Identifier: MIT
#pragma once

// The scorer of attend_sm90.cu: the warpgroup that multiplies q by the entries and turns logits into weights.

#include <cuda_bf16.h>

#include "cuda/deepseek_v4/attend_sm90.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Four slabs of 64 dims of q's 64 heads, from `q`, into swizzled rows; begins it, 128 threads together.
__device__ __forceinline__ void load_half_q(std::uint32_t to, const __nv_bfloat16* q) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int unit = i * 128 + static_cast<int>(threadIdx.x % 128);
    const int head = unit / 32, within = unit % 32;
    copy_async_16(to + within / 8 * 8192 + head * 128 + ((within % 8) ^ (head % 8)) * 16,
                  q + head * entry_dim + within * 8);
  }
}

template <int kStages, int kRaw>
struct attend_scorer {
  using smem = attend_smem<kStages, kRaw>;

  std::uint32_t base;  ///< of shared memory
  int tiles;

  /// Takes the lower half of q into registers, and sees that the upper one is where the tensor cores find it.
  __device__ __forceinline__ void take_q(std::uint32_t (&lower)[16][4]) const {
    const int lane = threadIdx.x % 32, head = threadIdx.x / 32 * 16 + lane % 16;
    wait(base + smem::q_full, 0);
#pragma unroll
    for (int step = 0; step < 16; ++step) {
      ptx::load_matrices(base + smem::q_lower + step / 4 * smem::q_slab + head * 128 +
                             ((step % 4 * 2 + lane / 16) ^ (head % 8)) * 16,
                         lower[step]);
    }
    __syncwarp();
    if (lane == 0) arrive(base + smem::q_taken);
    asm volatile("cp.async.wait_all;" ::: "memory");
    ptx::fence_async_proxy();
    sync_threads<scorer_threads>(2);
  }

  /// Begins s = q k^T of the tile in `stage`. Addresses count in units of 16 bytes in a descriptor; adding to one leaves
  /// its other fields alone.
  __device__ __forceinline__ void multiply(float (&s)[16], const std::uint32_t (&lower)[16][4],
                                           int stage) const {
    std::uint32_t q = base + smem::q_upper;
    asm volatile("" : "+r"(q));  // else 16 descriptors are kept in registers over the loop
    const std::uint64_t a = ptx::mma_descriptor(q, 16, 1024);
    const std::uint64_t b = ptx::mma_descriptor(base + smem::kv + stage * smem::tile, 16, 1024);
    ptx::mma_hold(s);
    ptx::mma_fence();
#pragma unroll
    for (int step = 0; step < 16; ++step)
      ptx::mma_rs_n32(s, lower[step], b + (step / 4 * smem::slab + step % 4 * 32) / 16, step > 0);
#pragma unroll
    for (int step = 0; step < 16; ++step) {
      ptx::mma_ss_n32(s, a + (step / 4 * smem::q_slab + step % 4 * 32) / 16,
                      b + ((4 + step / 4) * smem::slab + step % 4 * 32) / 16, 1);
    }
    ptx::mma_commit();
  }

  /// What threads know of their two rows.
  struct softmax_rows {
    float maximum[2] = {-INFINITY, -INFINITY};  ///< of logits to the base 2
    float sum[2] = {0, 0};                      ///< this thread's columns alone
    float factor[2] = {1, 1};                   ///< what the last tile rescales earlier ones by
  };

  /// The tile's logits to the base 2, -inf where there is no entry.
  __device__ __forceinline__ void take_logits(const float (&s)[16], float (&x)[16], float scale,
                                              int tile) const {
    std::uint32_t valid;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(valid) : "r"(base + smem::valid + tile % kStages * 4));
    valid >>= threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = valid >> (i / 4 * 8 + i % 2) & 1 ? s[i] * scale : -INFINITY;
  }

  /// Turns a tile's logits into weights.
  __device__ __forceinline__ void weigh(float (&x)[16], softmax_rows& rows) const {
    float top[2] = {rows.maximum[0], rows.maximum[1]};
#pragma unroll
    for (int i = 0; i < 16; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], x[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
      const float reference = top[r] == -INFINITY ? 0 : top[r];
      rows.factor[r] = ptx::exp2(rows.maximum[r] - reference);
      rows.maximum[r] = top[r];
      rows.sum[r] *= rows.factor[r];
      top[r] = reference;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      x[i] = ptx::exp2(x[i] - top[i / 2 % 2]);
      rows.sum[i / 2 % 2] += x[i];
    }
  }

  /// Leaves a tile's weights and the rescaling where the multiplications of the other warpgroups read them.
  __device__ __forceinline__ void hand_over(const float (&x)[16], const softmax_rows& rows, int tile) const {
    const int lane = threadIdx.x % 32, thread = threadIdx.x % 128;
    wait(base + smem::p_empty + tile % 2 * 8, (tile / 2 & 1) ^ 1);
    // 64 bytes per head in 64-byte-swizzled atoms of 8 heads; a lane names a row of 16 bytes of the four that it and
    // its neighbours store at once.
    const int head = thread / 32 * 16 + lane % 16;
    const std::uint32_t to = base + smem::p + tile % 2 * smem::p_bytes + head * 64;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const float* from = x + 8 * step;
      ptx::store_matrices(to + ((2 * step + lane / 16) ^ (head / 2 % 4)) * 16, pack_bf16(from[0], from[1]),
                          pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
                          pack_bf16(from[6], from[7]));
    }
    if (lane % 4 == 0) {
      const std::uint32_t at = base + smem::rescale + (tile % 2 * 64 + thread / 32 * 16 + lane / 4) * 4;
      store_shared4(at, __float_as_uint(rows.factor[0]));
      store_shared4(at + 32, __float_as_uint(rows.factor[1]));
    }
    ptx::fence_async_proxy();
    __syncwarp();
    if (lane == 0) arrive(base + smem::p_full + tile % 2 * 8);
  }

  /// With the upper half of q on its way.
  __device__ __forceinline__ void run(float scale_log2) const {
    std::uint32_t lower[16][4];
    take_q(lower);
    float s[16] = {}, x[16];
    softmax_rows rows;
    wait(base + smem::kv_full, 0);
    multiply(s, lower, 0);
    ptx::mma_wait<0>();
    ptx::mma_hold(s);
    // While the softmax of a tile runs, the tensor cores multiply q by the one after it. Without branches around the
    // multiplications: the compiler would run them one by one.
    for (int tile = 0; tile < tiles - 1; ++tile) {
      take_logits(s, x, scale_log2, tile);
      const int stage = (tile + 1) % kStages;
      wait(base + smem::kv_full + stage * 8, (tile + 1) / kStages & 1);
      multiply(s, lower, stage);
      weigh(x, rows);
      hand_over(x, rows, tile);
      ptx::mma_wait<0>();
      ptx::mma_hold(s);
    }
    take_logits(s, x, scale_log2, tiles - 1);
    weigh(x, rows);
    hand_over(x, rows, tiles - 1);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 1);
      rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 2);
      if (lane % 4 == 0) {
        const std::uint32_t at = base + smem::stats + (threadIdx.x / 32 * 16 + lane / 4 + r * 8) * 16;
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(rows.maximum[r]), "f"(rows.sum[r])
                     : "memory");
      }
    }
    sync_threads<scorer_threads + accumulator_threads>(1);
  }
};

#endif

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
