// SPDX-License-Identifier: MIT
#pragma once

// The end of attend_sm90.cu: the accumulators write their rows, or join them with those of the cluster's other blocks.

#include <cuda_bf16.h>

#include "cuda/deepseek_v4/attend_sm90.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int kStages, int kRaw, int kParts>
struct attend_join {
  using smem = attend_smem<kStages, kRaw>;
  static constexpr int dims = 256 / kParts, numbers = dims / 2;  ///< of the output: a warpgroup's, a thread's
  /// What a block leaves in scratch: 64 x 2 dims f16 in its threads' order, then 64 x 16 bytes: a head's maximum and sum,
  /// and the scales of either half of the dims.
  static constexpr int stats_at = 64 * dims * 4, bytes = stats_at + part_stats_bytes;

  /// Whether blocks read each other's shared memory, or scratch. Measured on an H100: scratch is 0.7 us faster at 1 row, 8
  /// splits and 4 parts of the dims, shared memory by 0.2 to 1 us from 8 rows on with one part.
  static constexpr bool in_shared = kParts == 1;

  const attend_params& params;
  std::uint32_t base;  ///< of shared memory
  std::int64_t row;
  int first_head, part, rank, splits;

  __device__ __forceinline__ static int half() { return this_thread() / 128; }
  /// The first of this warpgroup's dims, in slabs of 64.
  __device__ __forceinline__ int slab() const { return (part * 2 + half()) * dims / 64; }

  /// Writes the row, alone or together with the other blocks of the cluster. All accumulating threads together.
  __device__ __forceinline__ void finish(const float (&o)[numbers]) const {
    if (splits == 1) return write_alone(o);
    store_part(o);
    sync_cluster();
    switch (splits) {
      case 2:
        return join<2>();
      case 3:
        return join<3>();
      case 4:
        return join<4>();
      case 5:
        return join<5>();
      case 6:
        return join<6>();
      case 7:
        return join<7>();
      default:
        return join<8>();
    }
  }

 private:
  __device__ __forceinline__ static int this_thread() {
    return static_cast<int>(threadIdx.x) - scorer_threads;
  }

  /// What the cluster's block `peer` leaves for the others: in scratch.
  __device__ __forceinline__ unsigned char* block_part(int peer) const {
    const std::int64_t cluster = (row * (params.heads / 64) + first_head / 64) * kParts + part;
    return static_cast<unsigned char*>(params.scratch) + (cluster * splits + peer) * bytes;
  }

  __device__ __forceinline__ uint4 load_value(int peer, int unit) const {
    if constexpr (in_shared) {
      return load_cluster16(peer, base + unit * 16);
    } else {
      return __ldcg(reinterpret_cast<const uint4*>(block_part(peer)) + unit);
    }
  }
  __device__ __forceinline__ uint4 load_stats(int peer, int head) const {
    if constexpr (in_shared) {
      return load_cluster16(peer, base + smem::stats + head * 16);
    } else {
      return __ldcg(reinterpret_cast<const uint4*>(block_part(peer) + stats_at) + head);
    }
  }

  /// Address of this thread's first pair of values of its first row, in rows of 16-bit values where q was.
  __device__ __forceinline__ std::uint32_t part_address() const {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    return base + (warp * 16 + lane / 4) * smem::part_row + half() * dims * 2 + lane % 4 * 4;
  }

  /// What the softmax's sum is multiplied by to get the row's values, from the logits' maximum and the sum of weights
  /// relative to it. Writes the lse if `lse` is not null.
  __device__ __forceinline__ static float normalise(float maximum, float sum, const float* sink, float* lse) {
    const float sink_log2 = sink != nullptr ? __ldg(sink) * 1.4426950408889634f : -INFINITY;
    const float top = fmaxf(maximum, sink_log2);
    const float reference = top == -INFINITY ? 0 : top;
    const float factor = ptx::exp2(maximum - reference);
    const float total = sum * factor + (sink_log2 == INFINITY ? INFINITY : ptx::exp2(sink_log2 - reference));
    if (lse != nullptr) *lse = total == 0 ? -INFINITY : (reference + __log2f(total)) * 0.6931471805599453f;
    return total == 0 ? 0 : __fdividef(factor, total);
  }

  __device__ __forceinline__ void write_alone(const float (&o)[numbers]) const {
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = thread / 32 * 16 + lane / 4 + r * 8;
      const uint2 stats = load_shared8(base + smem::stats + head * 16);
      float* lse = params.lse != nullptr && part == 0 && half() == 0 && lane % 4 == 0
                       ? params.lse + row * params.heads + first_head + head
                       : nullptr;
      factor[r] = normalise(__uint_as_float(stats.x), __uint_as_float(stats.y),
                            params.sinks != nullptr ? params.sinks + first_head + head : nullptr, lse);
    }
    const std::uint32_t to = part_address();
#pragma unroll
    for (int i = 0; i < numbers / 4; ++i) {
      store_shared4(to + i * 16, pack_bf16(o[4 * i] * factor[0], o[4 * i + 1] * factor[0]));
      store_shared4(to + 8 * smem::part_row + i * 16,
                    pack_bf16(o[4 * i + 2] * factor[1], o[4 * i + 3] * factor[1]));
    }
    sync_threads<accumulator_threads>(1);
    constexpr int row_units = dims / 4;  ///< of 16 bytes, of the block's dims
    auto* out = static_cast<uint4*>(params.out) + (row * params.heads + first_head) * (entry_dim / 8) +
                part * row_units;
#pragma unroll 8
    for (int i = 0; i < row_units / 4; ++i) {
      const int unit = i * accumulator_threads + this_thread();
      out[unit / row_units * (entry_dim / 8) + unit % row_units] =
          load_shared16(base + unit / row_units * smem::part_row + unit % row_units * 16);
    }
  }

  /// Leaves this warpgroup's half of o as f16, in the order in which the threads hold it. Each row is scaled by a power of
  /// two to at most 2, so that its rounding is far below that of the weights.
  __device__ __forceinline__ void store_part(const float (&o)[numbers]) const {
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = 0;
#pragma unroll
      for (int i = 0; i < numbers / 4; ++i) {
        largest = fmaxf(largest, fmaxf(fabsf(o[4 * i + 2 * r]), fabsf(o[4 * i + 2 * r + 1])));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const std::uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 2u), 252u);
      inverse[r] = __uint_as_float((254 - exponent) << 23);
      if (lane % 4 == 0) {
        const int head = thread / 32 * 16 + lane / 4 + r * 8;
        const std::uint32_t own = base + smem::stats + head * 16;
        if constexpr (in_shared) {
          store_shared4(own + 8 + half() * 4, exponent << 23);
        } else {
          auto* stats = reinterpret_cast<std::uint32_t*>(block_part(rank) + stats_at + head * 16);
          stats[2 + half()] = exponent << 23;
          if (half() == 0) *reinterpret_cast<uint2*>(stats) = load_shared8(own);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < numbers / 8; ++i) {
      const float* x = o + 8 * i;
      const uint4 packed = make_uint4(
          pack_f16(x[0] * inverse[0], x[1] * inverse[0]), pack_f16(x[2] * inverse[1], x[3] * inverse[1]),
          pack_f16(x[4] * inverse[0], x[5] * inverse[0]), pack_f16(x[6] * inverse[1], x[7] * inverse[1]));
      const int unit = i * accumulator_threads + this_thread();
      if constexpr (in_shared) {
        store_shared16(base + unit * 16, packed);
      } else {
        reinterpret_cast<uint4*>(block_part(rank))[unit] = packed;
      }
    }
  }

  /// Joins the parts of the cluster's blocks; this block writes its share of the row. A unit is what a thread wrote at
  /// once, and all units of a thread here come from one thread there, so belong to the same two heads.
  template <int kSplits>
  __device__ __forceinline__ void join() const {
    constexpr int warps = numbers, units = (numbers / 8 + kSplits - 1) / kSplits;
    const int begin = warps * rank / kSplits * 32 + this_thread(),
              end = warps * (rank + 1) / kSplits * 32;  // whole warps
    const int thread = begin % accumulator_threads;     // whose values they are
    const int side = thread / 128, first_row = thread % 128 / 32 * 16 + thread % 32 / 4;
    // Four neighbours have the same two heads, so each looks at every fourth block's stats.
    constexpr int rounds = (kSplits + 3) / 4;
    const int lane = thread % 4;
    uint4 stats[2][rounds];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < rounds; ++i) {
        stats[r][i] = make_uint4(0xff800000u, 0, 0, 0);  // a block without entries
        if (4 * i + lane < kSplits) stats[r][i] = load_stats(4 * i + lane, first_row + r * 8);
      }
    }
    uint4 values[units][kSplits];
#pragma unroll
    for (int k = 0; k < units; ++k) {
#pragma unroll
      for (int peer = 0; peer < kSplits; ++peer) {
        const int unit = begin + k * accumulator_threads;
        if (unit < end) values[k][peer] = load_value(peer, unit);
      }
    }
    float factor[2][kSplits];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = first_row + r * 8;
      float top = -INFINITY, sum = 0;
#pragma unroll
      for (int i = 0; i < rounds; ++i) top = fmaxf(top, __uint_as_float(stats[r][i].x));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float reference = top == -INFINITY ? 0 : top;
      float own[rounds];
#pragma unroll
      for (int i = 0; i < rounds; ++i) {
        const float weight = ptx::exp2(__uint_as_float(stats[r][i].x) - reference);
        sum += weight * __uint_as_float(stats[r][i].y);
        own[i] = weight * __uint_as_float(side == 0 ? stats[r][i].z : stats[r][i].w);
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      float* lse = params.lse != nullptr && rank == 0 && part == 0 && side == 0 && lane == 0
                       ? params.lse + row * params.heads + first_head + head
                       : nullptr;
      const float norm =
          normalise(top, sum, params.sinks != nullptr ? params.sinks + first_head + head : nullptr, lse);
#pragma unroll
      for (int peer = 0; peer < kSplits; ++peer)
        factor[r][peer] = norm * __shfl_sync(0xffffffffu, own[peer / 4], peer % 4, 4);
    }
    if constexpr (in_shared) {
#pragma unroll
      for (int k = 0; k < units; ++k) {
#pragma unroll
        for (int peer = 0; peer < kSplits; ++peer) {
          // Not before everything has come: then the other blocks may end.
          uint4& v = values[k][peer];
          asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)::"memory");
        }
      }
      leave_cluster();
    }
    // A thread's four pairs belong to two rows and two groups of eight columns; after an exchange among four neighbours
    // each has one row's whole group.
    auto* out = static_cast<uint4*>(params.out) +
                ((row * params.heads + first_head + first_row + lane % 2 * 8) * entry_dim +
                 (part * 2 + side) * dims + lane / 2 * 8) /
                    8;
#pragma unroll
    for (int k = 0; k < units; ++k) {
      const int unit = begin + k * accumulator_threads;
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
        out[unit / accumulator_threads * 2] = upper ? make_uint4(first, second, here[1], there[1])
                                                    : make_uint4(here[0], there[0], first, second);
      }
    }
    if constexpr (in_shared) await_cluster();  // a block's shared memory goes with it
  }
};

#endif

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
