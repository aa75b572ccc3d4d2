// SPDX-License-Identifier: MIT
#pragma once

// Attention over gathered DeepSeek-V4 entries for sm_90a.
//
// A block owns 64 heads of one query row, one of `splits` equal parts of the row's list (window, then selected) and one
// of `parts` equal parts of the output's dims; the blocks of a row and a part of the dims form a cluster. It works
// through tiles of 32 entries:
//   warpgroup 0      (score.cuh) S = Q K^T of the next tile while the softmax of this one runs. Hands the weights P and
//                    the rescaling through shared memory to
//   warpgroups 1, 2  (accumulate.cuh) O += P V, half of the block's dims each. Besides, they fetch raw entries
//                    (fetch.cuh), and at the end join the cluster's parts (join.cuh).
//   warpgroup 3      (produce.cuh) turns raw entries into bf16 tiles.
// K and V are the same bytes: K reads a tile along the dims, V across the entries (transposed descriptor). Half of q
// stays in registers: reading all of it anew for every tile is more than shared memory can deliver beside the rest.
//
// Bytes: 584 per entry and 64 heads; per block 64 KiB of q. Invariant: a raw row's number, place and validity are
// decided once, by the lane that issues its copy; a tile row without an entry is all zeros and its weight is zero.

#include <cstdint>
#include <flashmemory/cuda/core/ptx.cuh>

#include "cuda/deepseek_v4/pool.cuh"
#include "cuda/deepseek_v4/wgmma.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void copy_async_16(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_8(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
}
// Barriers by their 32-bit address: pointers to them would take registers that the accumulators need.
__device__ __forceinline__ void init_barrier(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
/// Counts as one arrival once this thread's earlier cp.async have landed.
__device__ __forceinline__ void arrive_after_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
template <int kThreads>
__device__ __forceinline__ void sync_threads(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}
__device__ __forceinline__ void leave_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void await_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void sync_cluster() {
  leave_cluster();
  await_cluster();
}
/// From the shared memory of another block of the cluster.
__device__ __forceinline__ uint4 load_cluster16(int block, std::uint32_t address) {
  uint4 v;
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [there];\n}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(address), "r"(block)
      : "memory");
  return v;
}
__device__ __forceinline__ uint4 load_shared16(std::uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
__device__ __forceinline__ uint2 load_shared8(std::uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ float load_shared_float(std::uint32_t address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ void store_shared16(std::uint32_t address, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void store_shared4(std::uint32_t address, std::uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
__device__ __forceinline__ std::uint32_t pack_f16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float2 unpack_f16(std::uint32_t packed) {
  float2 v;
  asm("{\n.reg .f16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(v.x), "=f"(v.y)
      : "r"(packed));
  return v;
}
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ std::uint32_t multiply_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

/// Two e4m3 codes of a word as bf16 times 2^-120: the exponents' biases differ by 120. `selector` puts each in the lower
/// byte of its half and its sign into the upper (PRMT replicates the sign where a digit has its top bit).
__device__ __forceinline__ std::uint32_t widen(std::uint32_t codes, std::uint32_t selector) {
  std::uint32_t halves;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(halves) : "r"(codes), "r"(selector));
  return halves << 4 & 0x87f087f0u;
}

/// Sixteen codes to sixteen bf16, times the bf16 pair `factor`.
__device__ __forceinline__ void widen16(const uint4& codes, std::uint32_t factor, uint4& low, uint4& high) {
  low.x = multiply_bf16x2(widen(codes.x, 0x9180), factor);
  low.y = multiply_bf16x2(widen(codes.x, 0xb3a2), factor);
  low.z = multiply_bf16x2(widen(codes.y, 0x9180), factor);
  low.w = multiply_bf16x2(widen(codes.y, 0xb3a2), factor);
  high.x = multiply_bf16x2(widen(codes.z, 0x9180), factor);
  high.y = multiply_bf16x2(widen(codes.z, 0xb3a2), factor);
  high.z = multiply_bf16x2(widen(codes.w, 0x9180), factor);
  high.w = multiply_bf16x2(widen(codes.w, 0xb3a2), factor);
}

__device__ __forceinline__ void multiply_all(uint4& values, std::uint32_t factor) {
  values.x = multiply_bf16x2(values.x, factor);
  values.y = multiply_bf16x2(values.y, factor);
  values.z = multiply_bf16x2(values.z, factor);
  values.w = multiply_bf16x2(values.w, factor);
}

#endif

constexpr int tile_rows = 32;  ///< entries of a tile
constexpr int producers = 4;   ///< warps, eight rows of a tile each
constexpr int fetchers = 8;    ///< warps, four rows of a tile each
constexpr int scorer_threads = 128, accumulator_threads = 256, attend_threads = 512;

/// Shared memory of a block, in bytes from its start. Raw rows are 37 units of 16 bytes apart, so that eight rows'
/// equal columns fall into different banks.
template <int kStages, int kRaw>
struct attend_smem {
  static constexpr int raw_row = 592;
  static constexpr int slab = tile_rows * 128;  ///< 64 dims of a tile, one 128-byte row per entry
  static constexpr int tile = 8 * slab;
  static constexpr int p_bytes = 64 * tile_rows * 2;
  static constexpr int q_slab = 64 * 128;                    ///< 64 dims of q, one 128-byte row per head
  static constexpr int q_upper = 0;                          ///< dims 256 to 511
  static constexpr int kv = 4 * q_slab;                      ///< [kStages]
  static constexpr int q_lower = kv + (kStages - 1) * tile;  ///< dims 0 to 255, until they are in registers
  static constexpr int p = kv + kStages * tile;  ///< [2]: a tile's weights as bf16, a row per head
  static constexpr int raw = p + 2 * p_bytes;
  static constexpr int raw_scales = raw + kRaw * tile_rows * raw_row;
  static constexpr int rescale =
      raw_scales + kRaw * tile_rows * 8;                 ///< [2][64]: what earlier tiles are multiplied by
  static constexpr int valid = rescale + 512;            ///< [kStages] words, a bit per row
  static constexpr int raw_valid = valid + kStages * 4;  ///< [kRaw][fetchers] bytes
  static constexpr int raw_full = raw_valid + kRaw * fetchers;  ///< [producers][kRaw]
  static constexpr int raw_empty = raw_full + producers * kRaw * 8;
  static constexpr int kv_full = raw_empty + producers * kRaw * 8;  ///< [kStages]
  static constexpr int kv_empty = kv_full + kStages * 8;            ///< [kStages]
  static constexpr int p_full = kv_empty + kStages * 8;             ///< [2]
  static constexpr int p_empty = p_full + 16;                       ///< [2]
  static constexpr int q_full = p_empty + 16;                       ///< q_lower is there
  static constexpr int q_taken = q_full + 8;                        ///< and its place is free
  static constexpr int bytes = q_taken + 8;
  // After the last tile, from the start:
  static constexpr int part_row = 1040;  ///< 512 of 2 bytes, and padding against bank conflicts
  static constexpr int stats = raw;      ///< [64] of 16 bytes: maximum and sum
  static_assert(64 * part_row <= raw, "the rows must not reach the stats");
  static_assert(tile == 4 * q_slab, "q_lower fills a tile");
  static_assert(kStages >= 3, "a tile's neighbours are multiplied while its softmax runs");
  static_assert(p % 512 == 0, "");
  static_assert(raw_full % 8 == 0 && bytes + 1024 <= 232448, "");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __device__ __forceinline__ static void init_barriers(std::uint32_t base) {
    for (int i = 0; i < producers * kRaw; ++i) {
      init_barrier(base + raw_full + i * 8, 2 * 5);  // two warps' four small copies, and their bulk ones
      init_barrier(base + raw_empty + i * 8, 1);
    }
    for (int i = 0; i < kStages; ++i) {
      init_barrier(base + kv_full + i * 8, producers);
      init_barrier(base + kv_empty + i * 8, accumulator_threads / 32);
    }
    for (int i = 0; i < 2; ++i) {
      init_barrier(base + p_full + i * 8, scorer_threads / 32);
      init_barrier(base + p_empty + i * 8, accumulator_threads / 32);
    }
    init_barrier(base + q_full, 128);
    init_barrier(base + q_taken, scorer_threads / 32);
    ptx::barrier_init_fence();
  }
#endif
};

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
