// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <flashmemory/cuda/attend/cluster_join.cuh>
#include <flashmemory/cuda/attend/finish.cuh>
#include <flashmemory/cuda/attend/warp_join.cuh>
#include <flashmemory/cuda/core/launch.cuh>
#include <flashmemory/cuda/core/ptx_mma.cuh>
#include <type_traits>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// Of a block: the consumers, and a producer warp.
inline constexpr int tensor_core_threads = 32 * (consumer_warps + 1);

/// Pipeline of one head dimension: stages of 64 entries of K and V, as many as keep about 96 KB in flight per
/// block, two blocks a multiprocessor (one at 256). Bench row cuda/attend_gqa.
template <int kDim>
struct pipeline {
  static constexpr int stages = kDim == 64 ? 6 : 3;
  static constexpr int blocks_per_sm = kDim == 256 ? 1 : 2;
  static constexpr int half_bytes = stage_entries * kDim * 2;  // K, or V, of a stage

  /// Dynamic shared memory.
  struct memory {
    unsigned char stage[stages][2][half_bytes];
    float values[tile_rows * kDim];
    float maxima[consumer_warps][tile_rows], sums[consumer_warps][tile_rows];
    float maximum[tile_rows], sum[tile_rows];
    union {
      join_memory join;      // of many splits
      pair_mail<kDim> mail;  // of the blocks of a cluster
    };
    std::uint64_t full[stages], empty[stages];
  };
  static_assert(sizeof(memory) <= 228 * 1024 / blocks_per_sm - 1024, "what a multiprocessor has");
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The entries of one stage: whole pages if they are small, else a part of one.
struct stage_range {
  std::int32_t first;  // entry of the row
  std::int32_t count;
};

/// The stages of a split, in order.
struct stage_walk {
  std::int32_t per_stage;  // entries of a full stage
  std::int32_t per_page;   // stages of a page; 1 if a stage holds whole pages
  std::int32_t pages;      // of a stage
  std::int32_t stages;
  std::int32_t first, end;  // entries of the split

  __device__ stage_walk(const work& w, const split_range& range, std::int32_t entries) {
    const std::int32_t e = w.entries_per_page;
    pages = e <= stage_entries ? stage_entries / e : 1;
    per_stage = e <= stage_entries ? pages * e : stage_entries;
    per_page = (e + stage_entries - 1) / stage_entries;
    first = range.begin * e;
    end = min(range.end * e, entries);
    stages = range.end <= range.begin ? 0
             : e <= stage_entries     ? (range.end - range.begin + pages - 1) / pages
                                      : (range.end - range.begin) * per_page;
  }
  __device__ stage_range at(std::int32_t stage, std::int32_t entries_per_page) const {
    stage_range r;
    std::int32_t limit = end;
    if (per_page == 1) {
      r.first = first + stage * per_stage;
    } else {
      r.first = first + stage / per_page * entries_per_page + stage % per_page * stage_entries;
      limit = min(end, first + (stage / per_page + 1) * entries_per_page);
    }
    r.count = max(0, min(per_stage, limit - r.first));
    return r;
  }
};

/// One unit of work: a split of a tile of query rows.
template <class Call>
struct work_item {
  typename Call::entries_type::list list;
  split_range range;
  std::int32_t row, tile, split, kv_head, first_row, num_rows;

  /// False if the row has no such split.
  __device__ bool load(const Call& call, std::int32_t index) {
    const work& w = call.work;
    split = index % w.splits;
    const std::int32_t tiles = w.query_heads / w.group * w.head_tiles;
    tile = index / w.splits % tiles;
    row = index / w.splits / tiles;
    list = call.entries.row(row);
    range = range_of(w, list.entries, split);
    kv_head = tile / w.head_tiles;
    first_row = tile % w.head_tiles * tile_rows;
    num_rows = min(tile_rows, w.group * w.query_tokens - first_row);
    return split < range.splits;
  }
  __device__ static std::int32_t count(const work& w) {
    return w.num_rows * (w.query_heads / w.group) * w.head_tiles * w.splits;
  }
};

/// The producer: one warp feeds K and V of an item's pages into the ring, K or V of a page and head being one
/// contiguous block. The lanes look up 32 pages at once; lane 0 issues the copies.
template <int kDim, class Call>
__device__ void produce(const Call& call, const work_item<Call>& item,
                        typename pipeline<kDim>::memory& shared, std::uint32_t& issued) {
  using pipe = pipeline<kDim>;
  const std::int32_t entries_per_page = call.work.entries_per_page;
  const stage_walk walk(call.work, item.range, item.list.entries);
  const int lane = threadIdx.x % 32;
  std::int32_t window = item.range.begin - 32;
  page_id found = 0;
  for (std::int32_t s = 0; s < walk.stages; ++s, ++issued) {
    const int slot = issued % pipe::stages;
    const std::uint32_t round = issued / pipe::stages;
    const stage_range r = walk.at(s, entries_per_page);
    if (lane == 0) {
      if (round > 0) ptx::barrier_wait(shared.empty + slot, (round - 1) & 1);
      ptx::barrier_arrive_expect(shared.full + slot, std::uint32_t(r.count) * kDim * 2 * 2);
    }
    for (std::int32_t done = 0; done < r.count;) {
      const std::int32_t entry = r.first + done, c = entry / entries_per_page;
      const std::int32_t inside = entry - c * entries_per_page;
      const std::int32_t count = min(r.count - done, entries_per_page - inside);
      if (c >= window + 32) {
        window = c;
        found = c + lane < item.range.end ? call.entries.page(item.list, c + lane) : 0;
      }
      const page_id page = __shfl_sync(~0u, found, c - window);
      if (lane == 0) {
        const std::int64_t skip = std::int64_t(inside) * kDim * 2;
        ptx::bulk_copy(shared.stage[slot][0] + done * kDim * 2, call.entries.keys(page, item.kv_head) + skip,
                       std::uint32_t(count) * kDim * 2, shared.full + slot);
        ptx::bulk_copy(shared.stage[slot][1] + done * kDim * 2,
                       call.entries.values(page, item.kv_head) + skip, std::uint32_t(count) * kDim * 2,
                       shared.full + slot);
      }
      done += count;
    }
  }
}

/// A consumer warp's 16 entries of one stage.
/// \param limit   entries that row g or g + 8 may see
/// \param places  of the same rows
template <int kDim, int kHalves, class Call>
__device__ __forceinline__ void attend_stage(const Call& call, const typename Call::entries_type::list& list,
                                             const unsigned char* keys, const unsigned char* values,
                                             const uint4 (&q)[kHalves][kDim / 32], const stage_range& r,
                                             const std::int32_t (&limit)[kHalves],
                                             const logit_place (&places)[kHalves],
                                             accumulator<kDim, kHalves>& acc) {
  using T = typename Call::query_type;
  const int base = threadIdx.x / 32 * 16, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float score[2][4] = {},
        other[2][4] = {};  // the even and the odd MMAs of a chain, which wait for each other
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) {
    const uint4 first = q[0][i], second = kHalves == 2 ? q[kHalves - 1][i] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint4 k = *reinterpret_cast<const uint4*>(keys + (base + 8 * n + g) * kDim * 2 + 64 * i + 16 * t);
      ptx::mma<T>(score[n], first.x, second.x, first.y, second.y, k.x, k.y);
      ptx::mma<T>(other[n], first.z, second.z, first.w, second.w, k.z, k.w);
    }
  }
  const bool partial =
      base + 16 > r.count || r.first + base + 16 > list.entries - (call.work.query_tokens - 1);
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 2 * kHalves; ++i)
      score[n][i] = logit_of(call, list, places[i / 2], r.first + base + 8 * n + 2 * t + i % 2,
                             score[n][i] + other[n][i]);
  if (partial) {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i) {
        const std::int32_t at = base + 8 * n + 2 * t + i % 2;
        if (at >= r.count || r.first + at >= limit[i / 2]) score[n][i] = -INFINITY;
      }
  }

  float weight[2][4] = {};
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    float top = fmaxf(fmaxf(score[0][2 * half], score[0][2 * half + 1]),
                      fmaxf(score[1][2 * half], score[1][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    top = fmaxf(top, acc.maximum[half]);
    // A row that has seen nothing yet must not subtract infinities.
    const float reference = top == -INFINITY ? 0.0f : top;
    const float old = ptx::exp2(acc.maximum[half] - reference);
    acc.maximum[half] = top;
    float added = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float w = ptx::exp2(score[n][2 * half + i] - reference);
        weight[n][2 * half + i] = w;
        added += w;
      }
    acc.sum[half] = acc.sum[half] * old + added;  // of this thread's columns; the quad is summed at the end
    if (__any_sync(~0u, old != 1.0f)) {
#pragma unroll
      for (int c = 0; c < kDim / 64; ++c)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          acc.o[c][j][2 * half] *= old;
          acc.o[c][j][2 * half + 1] *= old;
        }
    }
  }
  const std::uint32_t p0 = ptx::pack<T>(weight[0][0], weight[0][1]),
                      p1 = ptx::pack<T>(weight[0][2], weight[0][3]);
  const std::uint32_t p2 = ptx::pack<T>(weight[1][0], weight[1][1]),
                      p3 = ptx::pack<T>(weight[1][2], weight[1][3]);
#pragma unroll
  for (int c = 0; c < kDim / 64; ++c) {
    uint4 v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const std::int32_t at = base + 2 * t + e % 2 + 8 * (e / 2);
      v[e] = *reinterpret_cast<const uint4*>(values + at * kDim * 2 + 128 * c + 16 * g);
      // What lies beyond the entries may be NaN, which a weight of zero does not hide.
      if (partial && at >= r.count) v[e] = make_uint4(0, 0, 0, 0);
    }
    const std::uint32_t words[4][4] = {{v[0].x, v[0].y, v[0].z, v[0].w},
                                       {v[1].x, v[1].y, v[1].z, v[1].w},
                                       {v[2].x, v[2].y, v[2].z, v[2].w},
                                       {v[3].x, v[3].y, v[3].z, v[3].w}};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const unsigned int take = j % 2 == 0 ? 0x5410 : 0x7632;
      const std::uint32_t b0 = __byte_perm(words[0][j / 2], words[1][j / 2], take);
      const std::uint32_t b1 = __byte_perm(words[2][j / 2], words[3][j / 2], take);
      ptx::mma<T>(acc.o[c][j], p0, p1, p2, p3, b0, b1);
    }
  }
}

/// Decode attention with tensor cores. Persistent: a block works through items (split of a tile of 16 query rows of
/// one KV head and row of the step) in a fixed stride, while its producer warp, which needs no turn of the
/// others, fills the ring with the next item's chunks. Each of four consumer warps takes 16 of a stage's 64
/// entries through Q K^T, a softmax with a running maximum of its own, and P V; they meet only at an item's end.
/// Every byte of K and V is read once per tile; all query heads of the group and all query tokens share it.
///
/// The order of a contraction is free, which lets a thread take 16 contiguous bytes where the MMA layout asks for
/// scattered pairs: for Q K^T thread t of a quad has dims 32 i + 8 t + [0, 8) as the columns 2t, 2t + 1, 2t + 8,
/// 2t + 9 of MMAs 2i and 2i + 1, in Q and K alike. For P V column g of MMA j is dim 64 c + 8 g + j.
///
/// With at most 8 query rows in a tile, kHalves = 1, the second half of the MMAs' rows is left out of everything else.
template <int kDim, int kHalves, class Call>
static __global__ void __launch_bounds__(tensor_core_threads, pipeline<kDim>::blocks_per_sm)
    tensor_core_kernel(const Call call) {
  using T = typename Call::query_type;
  using pipe = pipeline<kDim>;
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename pipe::memory*>(raw);
  const std::int32_t warp = threadIdx.x / 32, items = work_item<Call>::count(call.work);
  if (threadIdx.x == 0) {
    for (int s = 0; s < pipe::stages; ++s) {
      ptx::barrier_init(shared.full + s, 1);
      // Every thread for itself: that costs nothing, and racecheck sees no order by way of a neighbour.
      ptx::barrier_init(shared.empty + s, tile_threads);
    }
    if (call.work.cluster > 1) shared.mail.init();
    ptx::barrier_init_fence();
  }
  if (call.work.cluster > 1)
    ptx::cluster_sync();  // the other block may send
  else
    __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();

  work_item<Call> item;
  if (warp == consumer_warps) {
    std::uint32_t issued = 0;
    for (std::int32_t i = blockIdx.x; i < items; i += gridDim.x)
      if (item.load(call, i)) produce<kDim>(call, item, shared, issued);
    return;
  }

  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  std::uint32_t consumed = 0;
  pair_turn turn;
  for (std::int32_t i = blockIdx.x; i < items; i += gridDim.x) {
    if (!item.load(call, i)) continue;
    uint4 q[kHalves][kDim / 32];
    std::int32_t limit[kHalves];
    logit_place places[kHalves];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const std::int32_t r = g + 8 * half;
      const std::int32_t token = (item.first_row + r) / call.work.group,
                         head = (item.first_row + r) % call.work.group;
      limit[half] = item.list.entries - (call.work.query_tokens - 1 - token);
      places[half] =
          place_of(call, item.list, item.row, token, item.kv_head * call.work.group + head, limit[half]);
      const T* const from = call.q +
                            (std::int64_t(item.row) * call.work.query_tokens + token) * call.q_row_stride +
                            std::int64_t(item.kv_head * call.work.group + head) * call.q_head_stride;
#pragma unroll
      for (int k = 0; k < kDim / 32; ++k)
        q[half][k] = r < item.num_rows ? *reinterpret_cast<const uint4*>(from + 32 * k + 8 * t)
                                       : make_uint4(0, 0, 0, 0);
    }
    accumulator<kDim, kHalves> acc;
    acc.clear();
    const stage_walk walk(call.work, item.range, item.list.entries);
    for (std::int32_t s = 0; s < walk.stages; ++s, ++consumed) {
      const int slot = consumed % pipe::stages;
      const stage_range r = walk.at(s, call.work.entries_per_page);
      ptx::barrier_wait(shared.full + slot, (consumed / pipe::stages) & 1);
      if (16 * warp < r.count)
        attend_stage<kDim, kHalves>(call, item.list, shared.stage[slot][0], shared.stage[slot][1], q, r,
                                    limit, places, acc);
      ptx::fence_async_proxy();  // else the next copy's writes may overtake these reads
      ptx::barrier_arrive(shared.empty + slot);
    }
    const tile_rows_of_call tile{item.first_row, item.num_rows, item.row, item.kv_head * call.work.group};
    const tile_state state{shared.maximum, shared.sum, shared.values};
    join_warps<kDim, kHalves>(acc, item.num_rows, shared);
    if (call.work.cluster > 1 && item.range.splits > 1) {  // then both blocks have a split
      turn.join(call, shared.mail, tile, state);
      continue;
    }
    const std::int64_t tile_index =
        std::int64_t(item.row) * (call.work.query_heads / call.work.group) * call.work.head_tiles + item.tile;
    finish_tile(call, tile_index, tile, item.split, item.range.splits, state, shared.join);
    tile_barrier();  // before the next item's join overwrites what was just read
  }
}

#else

template <int kDim, int kHalves, class Call>
static __global__ void tensor_core_kernel(const Call) {}  // the launcher asks for sm_90

#endif

template <int kDim, int kHalves, class Call>
cudaError_t launch_tensor_core(const Call& call, cudaStream_t stream) noexcept {
  constexpr int bytes = sizeof(typename pipeline<kDim>::memory);
  constexpr auto kernel = tensor_core_kernel<kDim, kHalves, Call>;
  // Per device and cheap; remembering that it was done would need a global.
  if (const cudaError_t code =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      code != cudaSuccess)
    return code;
  const work& w = call.work;
  const std::int64_t items = std::int64_t(w.num_rows) * (w.query_heads / w.group) * w.head_tiles * w.splits;
  const std::int64_t most =
      std::max<std::int64_t>(std::int64_t(w.num_sms) * pipeline<kDim>::blocks_per_sm / w.cluster, 1);
  const auto grid = unsigned(std::min(items, most * w.cluster));
  // Long calls lose more by the next one's blocks than they gain (1 % of 360 us against 0.5 us).
  return cuda::detail::launch_overlapped(kernel, dim3(grid), tensor_core_threads, bytes, stream, w.splits > 1,
                                         unsigned(w.cluster), call);
}

}  // namespace detail

/// Attention of a decode step by tensor cores, for compute capability 9.0. Of what the portable kernel can do it does
/// what it can at full speed: Keys and Values are plain<Query>, Query is __nv_bfloat16 or __half, the entries of a page
/// and KV head are packed, K, V and q lie at multiples of 16 bytes and so do pages, heads and rows of q, and key_dim =
/// value_dim = kDim; any Logits and Output. Softmax weights are rounded to Query before they multiply V.
///
/// Enqueues; never synchronises, never allocates, can be captured.
/// \param call  with a work_of() a plan for tensor cores, of at least one row
template <int kDim, class Call>
cudaError_t launch_tensor_core(const Call& call, cudaStream_t stream) noexcept {
  using query = typename Call::query_type;
  static_assert(kDim == 64 || kDim == 128 || kDim == 256, "of which it has pipelines");
  static_assert(std::is_same_v<query, __nv_bfloat16> || std::is_same_v<query, __half>, "what it multiplies");
  static_assert(std::is_same_v<typename Call::keys_type, plain<query>> &&
                    std::is_same_v<typename Call::values_type, plain<query>>,
                "K and V are multiplied as they lie in memory; launch_portable() reads every format");
  static_assert(
      Call::entries_type::packed,
      "the copy engine takes a page's entries of a head at once; launch_portable() reads every layout");
  return call.work.group * call.work.query_tokens <= tile_rows / 2
             ? detail::launch_tensor_core<kDim, 1>(call, stream)
             : detail::launch_tensor_core<kDim, 2>(call, stream);
}

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
