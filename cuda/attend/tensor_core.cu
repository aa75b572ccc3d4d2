// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cuda/attend/cluster_join.cuh"
#include "cuda/attend/combine.cuh"
#include "cuda/attend/mma.cuh"
#include "cuda/attend/warp_join.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 32 * (consumer_warps + 1);

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

/// The entries of one stage: whole chunks if they are small, else a part of one.
struct stage_range {
  std::int32_t first;  // entry of the row
  std::int32_t count;
};

/// The stages of a split, in order.
struct stage_walk {
  std::int32_t per_stage;  // entries of a full stage
  std::int32_t per_chunk;  // stages of a chunk; 1 if a stage holds whole chunks
  std::int32_t chunks;     // of a stage
  std::int32_t stages;
  std::int32_t first, end;  // entries of the split

  __device__ stage_walk(const attend_call& call, const split_range& range, std::int32_t entries) {
    const std::int32_t e = call.entries_per_chunk;
    chunks = e <= stage_entries ? stage_entries / e : 1;
    per_stage = e <= stage_entries ? chunks * e : stage_entries;
    per_chunk = (e + stage_entries - 1) / stage_entries;
    first = range.begin * e;
    end = min(range.end * e, entries);
    stages = range.end <= range.begin ? 0
             : e <= stage_entries     ? (range.end - range.begin + chunks - 1) / chunks
                                      : (range.end - range.begin) * per_chunk;
  }
  __device__ stage_range at(std::int32_t stage, std::int32_t entries_per_chunk) const {
    stage_range r;
    std::int32_t limit = end;
    if (per_chunk == 1) {
      r.first = first + stage * per_stage;
    } else {
      r.first = first + stage / per_chunk * entries_per_chunk + stage % per_chunk * stage_entries;
      limit = min(end, first + (stage / per_chunk + 1) * entries_per_chunk);
    }
    r.count = max(0, min(per_stage, limit - r.first));
    return r;
  }
};

/// One unit of work: a split of a tile of query rows.
struct work_item {
  const std::byte* const* chunks;
  std::int32_t entries;
  split_range range;
  std::int32_t row, tile, split, kv_head, first_row, num_rows;

  /// False if the row has no such split.
  __device__ bool load(const attend_call& call, std::int32_t index) {
    split = index % call.splits;
    const std::int32_t tiles = call.query_heads / call.group * call.head_tiles;
    tile = index / call.splits % tiles;
    row = index / call.splits / tiles;
    const chunk_row mine = call.rows[row * call.row_stride];
    chunks = mine.chunks;
    entries = std::int32_t(mine.entries);
    range = range_of(call, entries, split);
    kv_head = tile / call.head_tiles;
    first_row = tile % call.head_tiles * tile_rows;
    num_rows = min(tile_rows, call.group * call.query_tokens - first_row);
    return split < range.splits;
  }
  __device__ static std::int32_t count(const attend_call& call) {
    return call.num_rows * (call.query_heads / call.group) * call.head_tiles * call.splits;
  }
};

/// The producer: one warp feeds K and V of an item's chunks into the ring, K or V of a chunk and head being one
/// contiguous block. The lanes fetch 32 chunk pointers at once; lane 0 issues the copies.
template <int kDim>
__device__ void produce(const attend_call& call, const work_item& item,
                        typename pipeline<kDim>::memory& shared, std::uint32_t& issued) {
  using pipe = pipeline<kDim>;
  const stage_walk walk(call, item.range, item.entries);
  const int lane = threadIdx.x % 32;
  const std::int64_t keys = call.key_offset + item.kv_head * call.key_block_bytes;
  const std::int64_t values = call.value_offset + item.kv_head * call.value_block_bytes;
  std::int32_t window = item.range.begin - 32;
  const std::byte* pointer = nullptr;
  for (std::int32_t s = 0; s < walk.stages; ++s, ++issued) {
    const int slot = issued % pipe::stages;
    const std::uint32_t round = issued / pipe::stages;
    const stage_range r = walk.at(s, call.entries_per_chunk);
    if (lane == 0) {
      if (round > 0) ptx::barrier_wait(shared.empty + slot, (round - 1) & 1);
      ptx::barrier_arrive_expect(shared.full + slot, std::uint32_t(r.count) * kDim * 2 * 2);
    }
    for (std::int32_t done = 0; done < r.count;) {
      const std::int32_t entry = r.first + done, c = entry / call.entries_per_chunk;
      const std::int32_t inside = entry - c * call.entries_per_chunk;
      const std::int32_t count = min(r.count - done, call.entries_per_chunk - inside);
      if (c >= window + 32) {
        window = c;
        pointer = c + lane < item.range.end ? item.chunks[c + lane] : nullptr;
      }
      const auto address = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(pointer), c - window);
      if (lane == 0) {
        const auto* const chunk =
            reinterpret_cast<const std::byte*>(address) + std::int64_t(inside) * kDim * 2;
        ptx::bulk_copy(shared.stage[slot][0] + done * kDim * 2, chunk + keys, std::uint32_t(count) * kDim * 2,
                       shared.full + slot);
        ptx::bulk_copy(shared.stage[slot][1] + done * kDim * 2, chunk + values,
                       std::uint32_t(count) * kDim * 2, shared.full + slot);
      }
      done += count;
    }
  }
}

/// A consumer warp's 16 entries of one stage.
template <class T, int kDim, int kHalves>
__device__ __forceinline__ void attend_stage(const attend_call& call, const unsigned char* keys,
                                             const unsigned char* values,
                                             const uint4 (&q)[kHalves][kDim / 32], const stage_range& r,
                                             std::int32_t entries, const std::int32_t (&limit)[kHalves],
                                             accumulator<kDim, kHalves>& acc) {
  const int base = threadIdx.x / 32 * 16, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float score[2][4] = {},
        other[2][4] = {};  // the even and the odd MMAs of a chain, which wait for each other
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) {
    const uint4 first = q[0][i], second = kHalves == 2 ? q[kHalves - 1][i] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint4 k = *reinterpret_cast<const uint4*>(keys + (base + 8 * n + g) * kDim * 2 + 64 * i + 16 * t);
      mma<T>(score[n], first.x, second.x, first.y, second.y, k.x, k.y);
      mma<T>(other[n], first.z, second.z, first.w, second.w, k.z, k.w);
    }
  }
  const bool partial = base + 16 > r.count || r.first + base + 16 > entries - (call.query_tokens - 1);
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 2 * kHalves; ++i) score[n][i] = logit_of(call, score[n][i] + other[n][i]);
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
  const std::uint32_t p0 = pack<T>(weight[0][0], weight[0][1]), p1 = pack<T>(weight[0][2], weight[0][3]);
  const std::uint32_t p2 = pack<T>(weight[1][0], weight[1][1]), p3 = pack<T>(weight[1][2], weight[1][3]);
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
      mma<T>(acc.o[c][j], p0, p1, p2, p3, b0, b1);
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
template <class T, int kDim, int kHalves>
__global__ void __launch_bounds__(threads, pipeline<kDim>::blocks_per_sm)
    tensor_core_kernel(const attend_call call, const partial_layout layout) {
  using pipe = pipeline<kDim>;
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename pipe::memory*>(raw);
  const std::int32_t warp = threadIdx.x / 32, items = work_item::count(call);
  if (threadIdx.x == 0) {
    for (int s = 0; s < pipe::stages; ++s) {
      ptx::barrier_init(shared.full + s, 1);
      // Every thread for itself: that costs nothing, and racecheck sees no order by way of a neighbour.
      ptx::barrier_init(shared.empty + s, tile_threads);
    }
    if (call.cluster > 1) shared.mail.init();
    ptx::barrier_init_fence();
  }
  if (call.cluster > 1)
    ptx::cluster_sync();  // the other block may send
  else
    __syncthreads();
  ptx::wait_for_previous_kernel();

  work_item item;
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
    std::int32_t limit[kHalves];  // entries that row g or g + 8 may see
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const std::int32_t r = g + 8 * half;
      const std::int32_t token = (item.first_row + r) / call.group, head = (item.first_row + r) % call.group;
      limit[half] = item.entries - (call.query_tokens - 1 - token);
      const auto* const from = static_cast<const T*>(call.q) +
                               (std::int64_t(item.row) * call.query_tokens + token) * call.q_row_stride +
                               std::int64_t(item.kv_head * call.group + head) * call.q_head_stride;
#pragma unroll
      for (int k = 0; k < kDim / 32; ++k)
        q[half][k] = r < item.num_rows ? *reinterpret_cast<const uint4*>(from + 32 * k + 8 * t)
                                       : make_uint4(0, 0, 0, 0);
    }
    accumulator<kDim, kHalves> acc;
    acc.clear();
    const stage_walk walk(call, item.range, item.entries);
    for (std::int32_t s = 0; s < walk.stages; ++s, ++consumed) {
      const int slot = consumed % pipe::stages;
      const stage_range r = walk.at(s, call.entries_per_chunk);
      ptx::barrier_wait(shared.full + slot, (consumed / pipe::stages) & 1);
      if (16 * warp < r.count)
        attend_stage<T, kDim, kHalves>(call, shared.stage[slot][0], shared.stage[slot][1], q, r, item.entries,
                                       limit, acc);
      ptx::fence_async_proxy();  // else the next copy's writes may overtake these reads
      ptx::barrier_arrive(shared.empty + slot);
    }
    const tile_rows_of_call tile{item.first_row, item.num_rows, item.row, item.kv_head * call.group};
    const tile_state state{shared.maximum, shared.sum, shared.values};
    join_warps<kDim, kHalves>(acc, item.num_rows, shared);
    if (call.cluster > 1 && item.range.splits > 1) {  // then both blocks have a split
      turn.join(call, shared.mail, tile, state);
      continue;
    }
    const std::int64_t tile_index =
        std::int64_t(item.row) * (call.query_heads / call.group) * call.head_tiles + item.tile;
    finish_tile(call, layout, tile_index, tile, item.split, item.range.splits, state, shared.join);
    tile_barrier();  // before the next item's join overwrites what was just read
  }
}

#else

template <class T, int kDim, int kHalves>
__global__ void tensor_core_kernel(const attend_call, const partial_layout) {}  // the launcher asks for sm_90

#endif

/// The launch of a kernel whose blocks `cluster` at a time share a tile; may begin while the one before it ends.
struct launch_config {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  launch_config(unsigned grid, int shared_bytes, std::int32_t cluster, bool overlaps, cudaStream_t stream) {
    config.gridDim = dim3(grid);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = std::size_t(shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    const auto add = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
      cudaLaunchAttribute& next = attributes[config.numAttrs++];
      next.id = id;
      return next.val;
    };
    if (overlaps)
      add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
    if (cluster > 1) {
      auto& dimension = add(cudaLaunchAttributeClusterDimension).clusterDim;
      dimension.x = unsigned(cluster);
      dimension.y = dimension.z = 1;
    }
  }
};

template <class T, int kDim, int kHalves>
cudaError_t launch_with(const attend_call& call, const partial_layout& layout, cudaStream_t stream) noexcept {
  constexpr int bytes = sizeof(typename pipeline<kDim>::memory);
  constexpr auto kernel = tensor_core_kernel<T, kDim, kHalves>;
  // Per device and cheap; remembering that it was done would need a global.
  if (const cudaError_t code =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      code != cudaSuccess)
    return code;
  const std::int64_t items =
      std::int64_t(call.num_rows) * (call.query_heads / call.group) * call.head_tiles * call.splits;
  const std::int64_t most =
      std::max<std::int64_t>(std::int64_t(call.num_sms) * pipeline<kDim>::blocks_per_sm / call.cluster, 1);
  const auto grid = unsigned(std::min(items, most * call.cluster));
  // Long calls lose more by the next one's blocks than they gain (1 % of 360 us against 0.5 us).
  const launch_config how(grid, bytes, call.cluster, call.splits > 1, stream);
  return cudaLaunchKernelEx(&how.config, kernel, call, layout);
}

template <class T, int kDim>
cudaError_t launch(const attend_call& call, const partial_layout& layout, cudaStream_t stream) noexcept {
  return call.group * call.query_tokens <= tile_rows / 2 ? launch_with<T, kDim, 1>(call, layout, stream)
                                                         : launch_with<T, kDim, 2>(call, layout, stream);
}

}  // namespace

cudaError_t launch_tensor_core(const attend_call& call, const partial_layout& layout,
                               cudaStream_t stream) noexcept {
  const bool bf16 = call.type == dtype::bf16;
  switch (call.key_dim) {
    case 64:
      return bf16 ? launch<__nv_bfloat16, 64>(call, layout, stream)
                  : launch<__half, 64>(call, layout, stream);
    case 128:
      return bf16 ? launch<__nv_bfloat16, 128>(call, layout, stream)
                  : launch<__half, 128>(call, layout, stream);
    case 256:
      return bf16 ? launch<__nv_bfloat16, 256>(call, layout, stream)
                  : launch<__half, 256>(call, layout, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
