// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/prompt_call.cuh>
#include <flashmemory/cuda/core/ptx_tensor.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// How a head dimension is worked on: two warpgroups of 64 query rows each, and a warp that feeds them.
template <int kDim>
struct prompt_pipeline {
  static constexpr int groups = prompt_tile / 64;
  static constexpr int consumers = groups * 128;
  static constexpr int threads = consumers + 128;
  static constexpr int stages = kDim == 64 ? 8 : kDim == 128 ? 6 : 2;
  static constexpr int block_bytes = prompt_block * kDim * 2;  // K, or V, of a stage
  static constexpr bool q_in_registers = kDim <= 128;

  /// Dynamic shared memory, which begins at a multiple of 1024.
  struct memory {
    unsigned char keys[stages][block_bytes], values[stages][block_bytes];
    unsigned char q[q_in_registers ? 16 : prompt_tile * kDim * 2];
    std::int32_t first[stages], count[stages];  // position of a stage's first entry; how many there are
    prompt_unit units[2];
    struct {
      std::int32_t first[32];
      unsigned long long place[32];
    } windows[2];  // of the pages whose K, and V, are copied next
    std::uint64_t full_keys[stages], empty_keys[stages], full_values[stages], empty_values[stages];
    std::uint64_t full_unit[2], empty_unit[2];
    std::uint32_t last;
    float unused;
  };
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// One warp finds units of work and tells the others.
template <int kDim, class Call>
__device__ __forceinline__ void prompt_schedule(const Call& call,
                                                typename prompt_pipeline<kDim>::memory& shared) {
  const prompt_work& w = call.work;
  const std::int32_t lane = threadIdx.x % 32;
  prompt_units<Call> units(call);
  for (std::uint32_t turn = 0;; ++turn) {
    std::uint32_t number = blockIdx.x;  // the first one; then whoever is free takes what is next
    if (turn > 0 && lane == 0) number = gridDim.x + atomicAdd(&w.counters[0], 1u);
    const prompt_unit u = units.at(__shfl_sync(~0u, number, 0));
    if (lane == 0) {
      if (turn >= 2) ptx::barrier_wait(shared.empty_unit + turn % 2, (turn / 2 - 1) & 1);
      shared.units[turn % 2] = u;
      ptx::barrier_arrive(shared.full_unit + turn % 2);
    }
    __syncwarp();
    if (!u.there) break;
  }
  // The last block to end leaves zeros for the next call.
  if (lane == 0 && atomicAdd(&w.counters[1], 1u) == gridDim.x - 1) w.counters[0] = w.counters[1] = 0;
}

/// One warp feeds K, another one V, of the pages of a unit, block after block. The lanes look up 32 pages at once; lane 0
/// issues the copies.
template <int kDim, bool kKeys, class Call>
__device__ __forceinline__ void prompt_produce(const Call& call, const CUtensorMap& map,
                                               typename prompt_pipeline<kDim>::memory& shared) {
  using pipe = prompt_pipeline<kDim>;
  const std::int32_t lane = threadIdx.x % 32, entries_per_page = call.work.entries_per_page;
  if (lane == 0) ptx::prefetch_map(map);
  int slot = 0;
  std::uint32_t parity = 1;  // an empty ring counts as one whose phase before has ended
  for (std::uint32_t turn = 0;; ++turn) {
    ptx::barrier_wait(shared.full_unit + turn % 2, (turn / 2) & 1);
    const prompt_unit& u = shared.units[turn % 2];
    const bool there = u.there;
    const std::int32_t item = u.item, head = u.kv_head, begin = u.begin, end = u.end, entries = u.entries;
    std::int32_t left = u.blocks;
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(shared.empty_unit + turn % 2);
    if (!there) return;
    if (begin >= end) continue;
    const chunk_id* ids;
    const std::byte* const* chunks;
    {
      const prompt_row row = call.entries.row(item);
      ids = row.ids;
      chunks = row.chunks;
    }
    // One lane alone issues the copies: what others shuffle to it in between costs more than all the rest.
    auto& window = shared.windows[kKeys ? 0 : 1];
    for (std::int32_t from = begin; from < end; from += 32) {
      if (from + lane < end) {
        const std::byte* const page = chunks[from + lane];
        window.first[lane] = ids[from + lane] * entries_per_page;
        window.place[lane] = reinterpret_cast<unsigned long long>(kKeys ? call.entries.keys(page, head)
                                                                        : call.entries.values(page, head));
      }
      __syncwarp();
      if (lane == 0) {
        const std::int32_t pages = min(32, end - from);
        for (std::int32_t i = 0; i < pages; ++i) {
          const std::int32_t first = window.first[i], there = min(entries_per_page, entries - first);
          const unsigned long long place = window.place[i];
          for (std::int32_t e = 0; e < there && left > 0; e += prompt_block, --left) {
            const std::int32_t count = min(prompt_block, there - e), without = prompt_block - count;
            // Coordinate 1 is a row below 64: rows behind the last entry are outside and become zeros.
            const unsigned long long start = place + std::int64_t(e - without) * kDim * 2;
            std::uint64_t* const full = (kKeys ? shared.full_keys : shared.full_values) + slot;
            ptx::barrier_wait((kKeys ? shared.empty_keys : shared.empty_values) + slot, parity);
            if (kKeys) {
              shared.first[slot] = first + e;
              shared.count[slot] = count;
            }
            ptx::barrier_arrive_expect(full, pipe::block_bytes);
            ptx::tensor_copy(kKeys ? shared.keys[slot] : shared.values[slot], map, 0, without, 0,
                             int((start & 0xffffffffu) >> 4), int(start >> 32), full);
            if (++slot == pipe::stages) {
              slot = 0;
              parity ^= 1;
            }
          }
        }
      }
      __syncwarp();
    }
  }
}

/// A place in the rings of K and V, and in which phase of its barriers.
template <int kStages>
struct prompt_place {
  int slot = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ prompt_place next() const {
    return slot + 1 == kStages ? prompt_place{0, parity ^ 1} : prompt_place{slot + 1, parity};
  }
};

#endif

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
