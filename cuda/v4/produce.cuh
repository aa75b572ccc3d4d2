// SPDX-License-Identifier: MIT
#pragma once

// The producers of attend_sm90.cu: two warpgroups that turn raw entries into bf16 tiles.
//
// Warps come in pairs, which own eight rows of every tile. The first widens dims 0 to 255; the second widens 256 to 447
// and copies the rotated 64. A lane works on 16 values of row lane % 8: eight lanes then store to eight different bank
// groups of the swizzled tile.

#include "v4/attend_sm90.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int kStages, int kRaw>
struct attend_producer {
  using smem = attend_smem<kStages, kRaw>;
  std::uint32_t base;  ///< of shared memory
  int tiles;

  __device__ __forceinline__ void widen_rows(int tile, int pair, int part, int lane) const {
    const int stage = tile % kStages, raw_stage = tile % kRaw;
    wait(base + smem::raw_full + (pair * kRaw + raw_stage) * 8, tile / kRaw & 1);
    std::uint32_t present;
    asm volatile("ld.shared.u32 %0, [%1];"
                 : "=r"(present)
                 : "r"(base + smem::raw_valid + (raw_stage * producer_pairs + pair) * 4));
    const int column = lane / 8, row = pair * 8 + lane % 8;
    const bool valid = present >> lane % 8 & 1;
    const std::uint32_t from = base + smem::raw + (raw_stage * tile_rows + row) * smem::raw_row + column * 16;
    const std::uint32_t to = base + smem::kv + stage * smem::tile + row * 128;
    const std::uint32_t low_at = to + ((2 * column) ^ (lane % 8)) * 16;
    const std::uint32_t high_at = to + ((2 * column + 1) ^ (lane % 8)) * 16;
    std::uint32_t scales;
    asm volatile("ld.shared.u32 %0, [%1];"
                 : "=r"(scales)
                 : "r"(base + smem::raw_scales + (raw_stage * tile_rows + row) * 8 + part * 4));
    if (part == 0) {
      uint4 codes[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) codes[i] = load_shared16(from + i * 64);
      release_raw(pair, raw_stage, lane);
      uint4 low[4], high[4];
      widen_slabs<4>(codes, scales, valid, low, high);
      wait(base + smem::kv_empty + stage * 8, (tile / kStages & 1) ^ 1);
      store_slabs<4>(low, high, low_at, high_at);
    } else {
      uint4 codes[3], rope[2];
#pragma unroll
      for (int i = 0; i < 3; ++i) codes[i] = load_shared16(from + (4 + i) * 64);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        rope[i] = load_shared16(from + nope_dim + i * 64);
        if (!valid) rope[i] = make_uint4(0, 0, 0, 0);
      }
      release_raw(pair, raw_stage, lane);
      uint4 low[3], high[3];
      widen_slabs<3>(codes, scales & 0xffffffu, valid, low, high);
      wait(base + smem::kv_empty + stage * 8, (tile / kStages & 1) ^ 1);
      store_shared16(to + 7 * smem::slab + (column ^ (lane % 8)) * 16, rope[0]);
      store_shared16(to + 7 * smem::slab + ((column + 4) ^ (lane % 8)) * 16, rope[1]);
      store_slabs<3>(low, high, low_at + 4 * smem::slab, high_at + 4 * smem::slab);
      if (column == 0) {
        asm volatile("st.shared.u8 [%0], %1;" ::"r"(base + smem::valid + stage * tile_rows + row),
                     "r"(static_cast<std::uint32_t>(valid))
                     : "memory");
      }
    }
    ptx::fence_async_proxy();
    __syncwarp();
    if (lane == 0) arrive(base + smem::kv_full + stage * 8);
  }

  /// This warp has the raw rows in registers.
  __device__ __forceinline__ void release_raw(int pair, int raw_stage, int lane) const {
    ptx::fence_async_proxy();  // else the copy engine's writes may overtake these reads
    __syncwarp();
    if (lane == 0) arrive(base + smem::raw_empty + (pair * kRaw + raw_stage) * 8);
  }

  __device__ __forceinline__ static void hold(uint4& v) {
    asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)::"memory");
  }

  /// `scales` holds a byte per slab.
  template <int kSlabs>
  __device__ __forceinline__ static void widen_slabs(const uint4 (&codes)[kSlabs], std::uint32_t scales,
                                                     bool valid, uint4 (&low)[kSlabs],
                                                     uint4 (&high)[kSlabs]) {
    // 2^120 * 2^(byte - 127) is a bf16 number up to byte 134, a group's largest value up to 57344; larger ones take a
    // second factor.
    const bool large = __vcmpgtu4(scales, 0x86868686u) != 0 && valid;
    const bool any_large = __any_sync(0xffffffffu, large) != 0;
#pragma unroll
    for (int i = 0; i < kSlabs; ++i) {
      const std::uint32_t byte = scales >> 8 * i & 0xffu;
      widen16(codes[i], valid ? (min(byte, 134u) + 120) * 0x00800080u : 0, low[i], high[i]);
    }
    if (any_large && valid) {
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) {
        const std::uint32_t byte = scales >> 8 * i & 0xffu;
        const std::uint32_t second = byte == 255 ? 0x7fc07fc0u : (max(byte, 134u) - 7) * 0x00800080u;
        multiply_all(low[i], second);
        multiply_all(high[i], second);
      }
    }
    // Now, not once there is room for it: filling a place that has just become free must not take longer than it has to.
#pragma unroll
    for (int i = 0; i < kSlabs; ++i) {
      hold(low[i]);
      hold(high[i]);
    }
  }

  template <int kSlabs>
  __device__ __forceinline__ static void store_slabs(const uint4 (&low)[kSlabs], const uint4 (&high)[kSlabs],
                                                     std::uint32_t low_at, std::uint32_t high_at) {
#pragma unroll
    for (int i = 0; i < kSlabs; ++i) {
      store_shared16(low_at + i * smem::slab, low[i]);
      store_shared16(high_at + i * smem::slab, high[i]);
    }
  }

  __device__ __forceinline__ void run() const {
    const int pair = threadIdx.x / 32 % 4, part = threadIdx.x / 128 % 2, lane = threadIdx.x % 32;
    for (int tile = 0; tile < tiles; ++tile) widen_rows(tile, pair, part, lane);
  }
};

#endif

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
