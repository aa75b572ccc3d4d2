// SPDX-License-Identifier: MIT
#pragma once

// The consumers of attend_sm90.cu: two warpgroups that multiply, each with its half of the output's dims in registers,
// and at the end join the cluster's parts.

#include <cuda_bf16.h>

#include "v4/attend_sm90.cuh"
#include "v4/fetch.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int kStages, int kRaw>
struct attend_consumer {
  using smem = attend_smem<kStages, kRaw>;

  std::uint32_t base;  ///< of shared memory
  int tiles;

  /// q's 64 heads into eight swizzled slabs of 64 dims; begins it, both warpgroups together.
  __device__ __forceinline__ static void load_q(std::uint32_t base, const __nv_bfloat16* q) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int unit = i * consumer_threads + static_cast<int>(threadIdx.x);
      const int head = unit / 64, within = unit % 64;
      copy_async_16(base + smem::q + within / 8 * 8192 + head * 128 + ((within % 8) ^ (head % 8)) * 16,
                    q + head * entry_dim + within * 8);
    }
  }
  __device__ __forceinline__ static void wait_for_q() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    ptx::fence_async_proxy();
    sync_threads<consumer_threads>(1);
  }

  // Addresses count in units of 16 bytes in a descriptor; adding to one leaves its other fields alone.

  __device__ __forceinline__ void multiply_qk(float (&s)[16], int stage) const {
    std::uint32_t q = base + smem::q;
    asm volatile("" : "+r"(q));  // else 32 descriptors are kept in registers over the loop
    const std::uint64_t a = ptx::mma_descriptor(q, 16, 1024);
    const std::uint64_t b = ptx::mma_descriptor(base + smem::kv + stage * smem::tile, 16, 1024);
#pragma unroll
    for (int step = 0; step < 32; ++step) {
      const int a_at = (step / 4 * 8192 + step % 4 * 32) / 16,
                b_at = (step / 4 * smem::slab + step % 4 * 32) / 16;
      ptx::mma_ss_n32(s, a + a_at, b + b_at, step > 0);
    }
  }

  /// o += P V for the 256 dims of this half.
  __device__ __forceinline__ void multiply_pv(float (&o)[128], int tile, int half) const {
    const std::uint64_t a = ptx::mma_descriptor_64(base + smem::p + tile % 2 * smem::p_bytes, 512);
    const std::uint64_t b = ptx::mma_descriptor(
        base + smem::kv + tile % kStages * smem::tile + half * 4 * smem::slab, smem::slab, 1024);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      ptx::mma_ss_n128<0>(o, a + step * 2, b + step * 128);
      ptx::mma_ss_n128<64>(o, a + step * 2, b + step * 128 + 2 * smem::slab / 16);
    }
  }

  __device__ __forceinline__ static void rescale_rows(float (&o)[128], float first, float second) {
    // Most tiles raise no row's maximum.
    if (!__any_sync(0xffffffffu, !(first == 1.0f && second == 1.0f))) return;
#pragma unroll
    for (int i = 0; i < 128; i += 4) {
      o[i] *= first;
      o[i + 1] *= first;
      o[i + 2] *= second;
      o[i + 3] *= second;
    }
  }

  __device__ __forceinline__ void release(int tile) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(base + smem::kv_empty + tile % kStages * 8);
  }

  /// What the first warpgroup's threads know of their two rows.
  struct softmax_rows {
    float maximum[2] = {-INFINITY, -INFINITY};  ///< of logits to the base 2
    float sum[2] = {0, 0};                      ///< this thread's columns alone
    float factor[2] = {1, 1};                   ///< what the last tile rescales earlier ones by
  };

  /// The tile's logits to the base 2, -inf where there is no entry.
  __device__ __forceinline__ void take_logits(const float (&s)[16], float (&x)[16], float scale,
                                              int tile) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t valid;
      asm volatile("ld.shared.u16 %0, [%1];"
                   : "=r"(valid)
                   : "r"(base + smem::valid + tile % kStages * tile_rows + 8 * j + lane % 4 * 2));
#pragma unroll
      for (int i = 0; i < 4; ++i) x[4 * j + i] = valid >> (i % 2 * 8) & 1 ? s[4 * j + i] * scale : -INFINITY;
    }
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

  /// Leaves a tile's weights and the rescaling where the multiplications of both warpgroups read them.
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
    sync_threads<128>(2);
    if (thread == 0) arrive(base + smem::p_full + tile % 2 * 8);
  }

  __device__ __forceinline__ void first(const attend_params& params, int splits) const {
    wait_for_q();
    float o[128];
#pragma unroll
    for (float& x : o) x = 0;
    float s[16] = {}, x[16];
    softmax_rows rows;
    wait(base + smem::kv_full, 0);
    ptx::mma_hold(s);
    ptx::mma_fence();
    multiply_qk(s, 0);
    ptx::mma_commit();
    ptx::mma_wait<0>();
    ptx::mma_hold(s);
    // While the softmax of a tile runs, the tensor cores multiply the tile before it by its weights, and q by the one
    // after it. Without branches around the multiplications: the compiler would run them one by one.
    take_logits(s, x, params.scale_log2, 0);
    if (tiles > 1) {
      wait(base + smem::kv_full + 8, 0);
      ptx::mma_hold(s);
      ptx::mma_fence();
      multiply_qk(s, 1);
      ptx::mma_commit();
    }
    weigh(x, rows);
    hand_over(x, rows, 0);
    ptx::mma_wait<0>();
    ptx::mma_hold(s);
    for (int tile = 1; tile < tiles - 1; ++tile) {
      const int stage = (tile + 1) % kStages;
      take_logits(s, x, params.scale_log2, tile);
      ptx::mma_hold(o);
      ptx::mma_hold(s);
      ptx::mma_fence();
      multiply_pv(o, tile - 1, 0);
      ptx::mma_commit();
      wait(base + smem::kv_full + stage * 8, (tile + 1) / kStages & 1);
      multiply_qk(s, stage);
      ptx::mma_commit();
      weigh(x, rows);
      ptx::mma_wait<1>();
      release(tile - 1);
      hand_over(x, rows, tile);
      ptx::mma_wait<0>();
      ptx::mma_hold(s);
      ptx::mma_hold(o);
      rescale_rows(o, rows.factor[0], rows.factor[1]);
    }
    if (tiles > 1) {
      take_logits(s, x, params.scale_log2, tiles - 1);
      ptx::mma_hold(o);
      ptx::mma_fence();
      multiply_pv(o, tiles - 2, 0);
      ptx::mma_commit();
      weigh(x, rows);
      hand_over(x, rows, tiles - 1);
      ptx::mma_wait<0>();
      ptx::mma_hold(o);
      rescale_rows(o, rows.factor[0], rows.factor[1]);
    }
    ptx::mma_hold(o);
    ptx::mma_fence();
    multiply_pv(o, tiles - 1, 0);
    ptx::mma_commit();
    const int lane = threadIdx.x % 32, thread = threadIdx.x % 128;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 1);
      rows.sum[r] += __shfl_xor_sync(0xffffffffu, rows.sum[r], 2);
      if (lane % 4 == 0) {
        const std::uint32_t at = base + smem::stats + (thread / 32 * 16 + lane / 4 + r * 8) * 16;
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(rows.maximum[r]), "f"(rows.sum[r])
                     : "memory");
      }
    }
    ptx::mma_wait<0>();
    ptx::mma_hold(o);
    finish(o, 0, params, blockIdx.x / splits, blockIdx.y * 64, blockIdx.x % splits, splits);
  }

  __device__ __forceinline__ void second(attend_fetcher<kStages, kRaw> fetcher, const attend_params& params,
                                         int splits) const {
    // Raw entries are asked for kAhead tiles before they are multiplied. Up to here nobody waits for this warpgroup: the
    // producers free the raw places of the first kStages tiles without it.
    constexpr int kAhead = kRaw + 2;
    static_assert(kAhead <= kRaw + kStages, "");
    for (int i = 0; i < kAhead; ++i) fetcher.next();
    wait_for_q();
    const int lane = threadIdx.x % 32, thread = threadIdx.x % 128;
    float o[128];
#pragma unroll
    for (float& x : o) x = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      fetcher.next();
      wait(base + smem::p_full + tile % 2 * 8, tile / 2 & 1);
      const std::uint32_t at = base + smem::rescale + (tile % 2 * 64 + thread / 32 * 16 + lane / 4) * 4;
      rescale_rows(o, load_shared_float(at), load_shared_float(at + 32));
      wait(base + smem::kv_full + tile % kStages * 8, tile / kStages & 1);
      ptx::mma_hold(o);
      ptx::mma_fence();
      multiply_pv(o, tile, 1);
      ptx::mma_commit();
      ptx::mma_wait<0>();
      ptx::mma_hold(o);
      release(tile);
      if (lane == 0) arrive(base + smem::p_empty + tile % 2 * 8);
    }
    finish(o, 1, params, blockIdx.x / splits, blockIdx.y * 64, blockIdx.x % splits, splits);
  }

  // ---- the end

  /// Writes the row, alone or together with the other blocks of the cluster.
  __device__ __forceinline__ void finish(const float (&o)[128], int half, const attend_params& params,
                                         std::int64_t row, int first_head, int rank, int splits) const {
    sync_threads<consumer_threads>(1);  // nobody multiplies any more; the stats are there
    if (splits == 1) return write_alone(o, half, params, row, first_head);
    unsigned char* parts = static_cast<unsigned char*>(params.scratch) +
                           (row * (params.heads / 64) + first_head / 64) * splits * part_bytes;
    store_part(o, half, parts + rank * part_bytes);
    sync_cluster();
    switch (splits) {
      case 2:
        return join<2>(params, parts, row, first_head, rank);
      case 3:
        return join<3>(params, parts, row, first_head, rank);
      case 4:
        return join<4>(params, parts, row, first_head, rank);
      case 5:
        return join<5>(params, parts, row, first_head, rank);
      case 6:
        return join<6>(params, parts, row, first_head, rank);
      case 7:
        return join<7>(params, parts, row, first_head, rank);
      default:
        return join<8>(params, parts, row, first_head, rank);
    }
  }

  /// Address of this thread's first pair of values of its first row, in rows of 16-bit values where q was.
  __device__ __forceinline__ std::uint32_t part_address(int half) const {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    return base + (warp * 16 + lane / 4) * smem::part_row + half * 512 + lane % 4 * 4;
  }

  /// What the softmax's sum is multiplied by to get the row's values, from the logits' maximum and the sum of weights
  /// relative to it. Writes the lse if `lse` is not null.
  __device__ __forceinline__ static float normalise(float maximum, float sum, const float* sink, float* lse) {
    const float sink_log2 = sink != nullptr ? __ldg(sink) * 1.4426950408889634f : -INFINITY;
    const float top = fmaxf(maximum, sink_log2);
    const float reference = top == -INFINITY ? 0 : top;
    const float factor = ptx::exp2(maximum - reference);
    const float total = sum * factor + ptx::exp2(sink_log2 - reference);
    if (lse != nullptr) *lse = total == 0 ? -INFINITY : (reference + __log2f(total)) * 0.6931471805599453f;
    return total == 0 ? 0 : __fdividef(factor, total);
  }

  __device__ __forceinline__ void write_alone(const float (&o)[128], int half, const attend_params& params,
                                              std::int64_t row, int first_head) const {
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = thread / 32 * 16 + lane / 4 + r * 8;
      const uint2 stats = load_shared8(base + smem::stats + head * 16);
      float* lse = params.lse != nullptr && half == 0 && lane % 4 == 0
                       ? params.lse + row * params.heads + first_head + head
                       : nullptr;
      factor[r] = normalise(__uint_as_float(stats.x), __uint_as_float(stats.y),
                            params.sinks != nullptr ? params.sinks + first_head + head : nullptr, lse);
    }
    const std::uint32_t to = part_address(half);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      store_shared4(to + i * 16, pack_bf16(o[4 * i] * factor[0], o[4 * i + 1] * factor[0]));
      store_shared4(to + 8 * smem::part_row + i * 16,
                    pack_bf16(o[4 * i + 2] * factor[1], o[4 * i + 3] * factor[1]));
    }
    sync_threads<consumer_threads>(1);
    auto* out = static_cast<uint4*>(params.out) + (row * params.heads + first_head) * (entry_dim / 8);
#pragma unroll 8
    for (int i = 0; i < 16; ++i) {
      const int unit = i * consumer_threads + static_cast<int>(threadIdx.x);
      out[unit] = load_shared16(base + unit / 64 * smem::part_row + unit % 64 * 16);
    }
  }

  /// Leaves this warpgroup's half of o as f16 in global memory, in the order in which the threads hold it. Each row is
  /// scaled by a power of two to at most 2, so that its rounding is far below that of the weights. Distributed shared
  /// memory instead measured 0.5 us slower at 1 row and up to 2 us faster at 64, between runs on different cards.
  __device__ __forceinline__ void store_part(const float (&o)[128], int half, unsigned char* part) const {
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = 0;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        largest = fmaxf(largest, fmaxf(fabsf(o[4 * i + 2 * r]), fabsf(o[4 * i + 2 * r + 1])));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const std::uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 2u), 252u);
      inverse[r] = __uint_as_float((254 - exponent) << 23);
      if (lane % 4 == 0) {
        const int head = thread / 32 * 16 + lane / 4 + r * 8;
        auto* stats = reinterpret_cast<std::uint32_t*>(part + part_stats + head * 16);
        stats[2 + half] = exponent << 23;
        if (half == 0) *reinterpret_cast<uint2*>(stats) = load_shared8(base + smem::stats + head * 16);
      }
    }
    auto* to = reinterpret_cast<uint4*>(part) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float* x = o + 8 * i;
      to[i * consumer_threads] = make_uint4(
          pack_f16(x[0] * inverse[0], x[1] * inverse[0]), pack_f16(x[2] * inverse[1], x[3] * inverse[1]),
          pack_f16(x[4] * inverse[0], x[5] * inverse[0]), pack_f16(x[6] * inverse[1], x[7] * inverse[1]));
    }
  }

  /// Joins the parts of the cluster's blocks; this block writes its share of the row. A unit is what a thread wrote at
  /// once, and all units of a thread here come from one thread there, so belong to the same two heads.
  template <int kSplits>
  __device__ __forceinline__ void join(const attend_params& params, const unsigned char* parts,
                                       std::int64_t row, int first_head, int rank) const {
    constexpr int units = (16 + kSplits - 1) / kSplits;
    const int begin = 128 * rank / kSplits * 32 + static_cast<int>(threadIdx.x),
              end = 128 * (rank + 1) / kSplits * 32;  // whole warps
    uint4 values[units][kSplits];
#pragma unroll
    for (int k = 0; k < units; ++k) {
#pragma unroll
      for (int peer = 0; peer < kSplits; ++peer) {
        const int unit = begin + k * consumer_threads;
        if (unit < end)
          values[k][peer] = __ldcg(reinterpret_cast<const uint4*>(parts + peer * part_bytes) + unit);
      }
    }
    const int thread = begin % consumer_threads;  // whose values they are
    const int half = thread / 128, first_row = thread % 128 / 32 * 16 + thread % 32 / 4;
    float factor[2][kSplits];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = first_row + r * 8;
      uint4 stats[kSplits];
      float top = -INFINITY, sum = 0;
#pragma unroll
      for (int peer = 0; peer < kSplits; ++peer) {
        stats[peer] = __ldcg(reinterpret_cast<const uint4*>(parts + peer * part_bytes + part_stats) + head);
        top = fmaxf(top, __uint_as_float(stats[peer].x));
      }
      const float reference = top == -INFINITY ? 0 : top;
#pragma unroll
      for (int peer = 0; peer < kSplits; ++peer) {
        const float weight = ptx::exp2(__uint_as_float(stats[peer].x) - reference);
        sum += weight * __uint_as_float(stats[peer].y);
        factor[r][peer] = weight * __uint_as_float(half == 0 ? stats[peer].z : stats[peer].w);
      }
      float* lse = params.lse != nullptr && rank == 0 && half == 0 && thread % 4 == 0
                       ? params.lse + row * params.heads + first_head + head
                       : nullptr;
      const float norm =
          normalise(top, sum, params.sinks != nullptr ? params.sinks + first_head + head : nullptr, lse);
#pragma unroll
      for (int peer = 0; peer < kSplits; ++peer) factor[r][peer] *= norm;
    }
    // A thread's four pairs belong to two rows and two groups of eight columns; after an exchange among four neighbours
    // each has one row's whole group.
    const int lane = thread % 4;
    auto* out = static_cast<uint4*>(params.out) +
                ((row * params.heads + first_head + first_row + lane % 2 * 8) * entry_dim + half * 256 +
                 lane / 2 * 8) /
                    8;
#pragma unroll
    for (int k = 0; k < units; ++k) {
      const int unit = begin + k * consumer_threads;
      if (unit < end) {
        float2 total[4] = {};
#pragma unroll
        for (int peer = 0; peer < kSplits; ++peer) {
          const uint4& v = values[k][peer];
          const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 pair = unpack_f16(words[i]);
            total[i].x += factor[i % 2][peer] * pair.x;
            total[i].y += factor[i % 2][peer] * pair.y;
          }
        }
        std::uint32_t pair[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) pair[i] = pack_bf16(total[i].x, total[i].y);
        const bool odd = lane % 2 != 0, upper = lane / 2 != 0;
        std::uint32_t here[2], there[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::uint32_t mine = odd ? pair[2 * i + 1] : pair[2 * i];
          const std::uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? pair[2 * i] : pair[2 * i + 1], 1);
          here[i] = odd ? got : mine;
          there[i] = odd ? mine : got;
        }
        const std::uint32_t first = __shfl_xor_sync(0xffffffffu, upper ? here[0] : here[1], 2);
        const std::uint32_t second = __shfl_xor_sync(0xffffffffu, upper ? there[0] : there[1], 2);
        out[unit / consumer_threads * 2] = upper ? make_uint4(first, second, here[1], there[1])
                                                 : make_uint4(here[0], there[0], first, second);
      }
    }
  }
};

#endif

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
