// SPDX-License-Identifier: MIT
#pragma once

// How attend_sm90.cu gets entries into shared memory: one bulk copy per entry into a ring of raw rows, kRaw tiles deep.
// Copies are issued lane by lane, which takes about as long as turning what they bring into bf16. So the warps that
// accumulate do it, between their multiplications. Their warp w fetches rows 4w to 4w + 3 of every tile.

#include "cuda/deepseek_v4/attend_sm90.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// What a block works on: a part of the row's list, window first.
struct block_range {
  std::int32_t window_count, begin, end;

  __device__ __forceinline__ block_range(std::int32_t window, std::int32_t selected, int rank, int splits)
      : window_count(window) {
    const std::int32_t count = window + selected, share = (count + splits - 1) / splits;
    begin = min(rank * share, count);
    end = min(begin + share, count);
  }
  __device__ __forceinline__ bool operator==(const block_range& other) const {
    return window_count == other.window_count && begin == other.begin && end == other.end;
  }
};

template <int kStages, int kRaw>
struct attend_fetcher {
  using smem = attend_smem<kStages, kRaw>;
  static constexpr int tiles_per_list = 8;  ///< tiles whose entries a warp looks up at once, four lanes each

  const attend_params& params;
  const block_range& range;
  std::int64_t row;
  std::uint32_t base;  ///< of shared memory
  int tiles;
  device_place place;   ///< of the list in use
  std::int32_t coming;  ///< this lane's entry number in the next list
  int issued = 0;

  /// `first` and `second` are the numbers of this lane's first two lists.
  __device__ __forceinline__ attend_fetcher(const attend_params& call, const block_range& part,
                                            std::int64_t query_row, std::uint32_t shared, int num_tiles,
                                            std::int32_t first, std::int32_t second)
      : params(call),
        range(part),
        row(query_row),
        base(shared),
        tiles(num_tiles),
        place(place_of(call, part, 0, first)),
        coming(second) {}

  __device__ __forceinline__ static int fetcher() {
    return static_cast<int>(threadIdx.x - scorer_threads) / 32;
  }

  /// Position in the row's list of what this lane fetches in tiles [list * tiles_per_list, + tiles_per_list).
  __device__ __forceinline__ static int position(const block_range& range, int list) {
    const int lane = threadIdx.x % 32;
    return range.begin + (list * tiles_per_list + lane / 4) * tile_rows + fetcher() * 4 + lane % 4;
  }

  /// The entry number there, -1 past the end.
  __device__ __forceinline__ static std::int32_t number(const attend_params& params, const block_range& range,
                                                        std::int64_t row, int list) {
    const int at = position(range, list);
    if (at >= range.end) return -1;
    if (at < range.window_count) return __ldg(params.window.entries + row * params.window.stride + at);
    return __ldg(params.selected.entries + row * params.selected.stride + (at - range.window_count));
  }

  __device__ __forceinline__ static device_place place_of(const attend_params& params,
                                                          const block_range& range, int list,
                                                          std::int32_t number) {
    if (position(range, list) < range.window_count) return find(params.window_pool, number);
    return find(params.selected_pool, number);
  }

  /// Fetches the next tile, if there is one, as soon as the producers have read what was in its place.
  __device__ __forceinline__ void next() {
    if (issued >= tiles) return;
    const int warp = fetcher(), lane = threadIdx.x % 32;
    if (issued > 0 && issued % tiles_per_list == 0) {
      const int list = issued / tiles_per_list;
      place = place_of(params, range, list, coming);
      coming = number(params, range, row, list + 1);
    }
    const int tile = issued++;
    const int stage = tile % kRaw, holder = tile % tiles_per_list;
    const int barrier = (warp / 2 * kRaw + stage) * 8;
    const std::uint32_t full = base + smem::raw_full + barrier;
    wait(base + smem::raw_empty + barrier, (tile / kRaw & 1) ^ 1);
    const bool mine = lane / 4 == holder, present = mine && place.row != nullptr;
    const std::uint32_t rows = __ballot_sync(0xffffffffu, present) >> holder * 4;
    if (lane == 0) {
      asm volatile("st.shared.u8 [%0], %1;" ::"r"(base + smem::raw_valid + stage * fetchers + warp), "r"(rows)
                   : "memory");
      arrive_expect(full, __popc(rows) * static_cast<std::uint32_t>(row_bytes));
    }
    __syncwarp();
    if (present) {
      const int at = stage * tile_rows + warp * 4 + lane % 4;
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
              base + smem::raw + at * smem::raw_row),
          "l"(place.row), "r"(static_cast<std::uint32_t>(row_bytes)), "r"(full)
          : "memory");
      copy_async_8(base + smem::raw_scales + at * 8, place.scales);
    }
    if (mine) arrive_after_copies(full);
  }
};

#endif

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
