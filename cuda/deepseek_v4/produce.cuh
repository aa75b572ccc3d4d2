// SPDX-License-Identifier: MIT
#pragma once

// The producers of attend_sm90.cu: a warpgroup that turns raw entries into bf16 tiles, each warp eight rows of every
// tile. A lane works on 16 values at a time of row lane % 8: eight lanes then store to eight different bank groups of
// the swizzled tile.

#include "cuda/deepseek_v4/attend_sm90.cuh"

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

  __device__ __forceinline__ void widen_rows(int tile, int warp, int lane) const {
    const int stage = tile % kStages, raw_stage = tile % kRaw;
    const int barrier = (warp * kRaw + raw_stage) * 8;
    wait(base + smem::raw_full + barrier, tile / kRaw & 1);
    std::uint32_t present;
    asm volatile("ld.shared.u16 %0, [%1];"
                 : "=r"(present)
                 : "r"(base + smem::raw_valid + raw_stage * fetchers + warp * 2));
    const int column = lane / 8, row = warp * 8 + lane % 8;
    const bool valid = present >> (lane % 4 + lane % 8 / 4 * 8) & 1;
    const std::uint32_t from = base + smem::raw + (raw_stage * tile_rows + row) * smem::raw_row + column * 16;
    const std::uint32_t to = base + smem::kv + stage * smem::tile + row * 128;
    const std::uint32_t low_at = to + ((2 * column) ^ (lane % 8)) * 16;
    const std::uint32_t high_at = to + ((2 * column + 1) ^ (lane % 8)) * 16;
    const uint2 scales = load_shared8(base + smem::raw_scales + (raw_stage * tile_rows + row) * 8);
    uint4 codes[7], rope[2];
#pragma unroll
    for (int i = 0; i < 7; ++i) codes[i] = load_shared16(from + i * 64);
#pragma unroll
    for (int i = 0; i < 2; ++i) rope[i] = load_shared16(from + nope_dim + i * 64);
    ptx::fence_async_proxy();  // else the copy engine's writes may overtake these reads
    __syncwarp();
    if (lane == 0) arrive(base + smem::raw_empty + barrier);
    if (!valid) rope[0] = rope[1] = make_uint4(0, 0, 0, 0);
    if (tile == kStages - 1) wait(base + smem::q_taken, 0);
    wait(base + smem::kv_empty + stage * 8, (tile / kStages & 1) ^ 1);
    store_shared16(to + 7 * smem::slab + (column ^ (lane % 8)) * 16, rope[0]);
    store_shared16(to + 7 * smem::slab + ((column + 4) ^ (lane % 8)) * 16, rope[1]);
    if (!__any_sync(0xffffffffu, valid && (is_large(scales.x) || is_large(scales.y & 0xffffffu)))) {
      // All factors at once. A row without an entry is multiplied by zero, whatever it holds: no code is infinite.
      const std::uint32_t factors[2] = {valid ? scales.x + 0x78787878u : 0, valid ? scales.y + 0x787878u : 0};
#pragma unroll
      for (int i = 0; i < 7; ++i) {
        uint4 low, high;
        widen16(codes[i], __byte_perm(factors[i / 4], 0, 0x4040 + i % 4 * 0x0101) << 7, low, high);
        store_shared16(low_at + i * smem::slab, low);
        store_shared16(high_at + i * smem::slab, high);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 7; ++i) {
        const std::uint32_t byte = (i < 4 ? scales.x : scales.y) >> i % 4 * 8 & 0xffu;
        uint4 low, high;
        widen16(codes[i], valid ? (min(byte, 134u) + 120) * 0x00800080u : 0, low, high);
        if (valid) {
          const std::uint32_t second = byte == 255 ? 0x7fc07fc0u : (max(byte, 134u) - 7) * 0x00800080u;
          multiply_all(low, second);
          multiply_all(high, second);
        }
        store_shared16(low_at + i * smem::slab, low);
        store_shared16(high_at + i * smem::slab, high);
      }
    }
    if (lane == 0) {
      asm volatile("st.shared.u8 [%0], %1;" ::"r"(base + smem::valid + stage * 4 + warp),
                   "r"((present & 0xfu) | (present >> 4 & 0xf0u))
                   : "memory");
    }
    ptx::fence_async_proxy();
    __syncwarp();
    if (lane == 0) arrive(base + smem::kv_full + stage * 8);
  }

  /// Whether one of four scales is too large for one factor: 2^120 * 2^(byte - 127) is a bf16 number up to byte 134, a
  /// group's largest value up to 57344.
  __device__ __forceinline__ static bool is_large(std::uint32_t scales) {
    return __vcmpgtu4(scales, 0x86868686u) != 0;
  }

  __device__ __forceinline__ void run() const {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    for (int tile = 0; tile < tiles; ++tile) widen_rows(tile, warp, lane);
  }
};

#endif

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
