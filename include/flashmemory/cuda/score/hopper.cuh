// SPDX-License-Identifier: MIT
#pragma once

// Scores planar e4m3 keys on the tensor cores of sm_90a.
//
// One block per multiprocessor takes an even, contiguous range of 64-key tiles of all jobs. Its last warp
// streams them with the copy engine into a ring of slots; its three warpgroups take turns at the
// tiles: warp w of a group owns keys 16 w .. 16 w + 15, whose fragments it loads from the linear tile into
// registers, multiplies them with all heads at once (keys are wgmma's A and M = 64, heads its B and N), and
// adds up relu and weights in registers, where a quad of lanes holds the heads of one key. Queries are in
// shared memory, a copy for each warpgroup, so that the groups need not wait for each other where a job ends.
//
// A lane wants 32 bytes of its key, in the order of the contraction of its choice: it takes two 16-byte
// pieces, and the queries are stored permuted to match. 132 bytes are read per key and up to 4.25 are
// written.

#include <cstdint>
#include <flashmemory/cuda/core/launch.cuh>
#include <flashmemory/cuda/core/ptx.cuh>
#include <flashmemory/cuda/core/ptx_wgmma.cuh>
#include <flashmemory/cuda/score/call.cuh>
#include <flashmemory/cuda/score/job_cursor.cuh>
#include <flashmemory/cuda/score/outputs.cuh>
#include <type_traits>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace scoring {
namespace detail {

inline constexpr int row_bytes = 128;
inline constexpr int tile_bytes = tile_keys * (row_bytes + 4);  // keys, then scales
inline constexpr int warpgroups = 3;  // with 2 the tensor cores idle, for 4 there are too few registers
inline constexpr int consumers = warpgroups * 128;
// One warp of the last group works; the group gives away its registers.
inline constexpr int hopper_threads = consumers + 128;
// 80 to 100 KB under way keep the memory busy. More is worse where a job begins: its queries come behind all
// of it.
template <int kHeads>
inline constexpr int stages_for = kHeads == 64 ? 9 : 12;
// So a slot is always the same warpgroup's, which waits for its fillings one after another. Copies do not
// arrive in order, and who waited for a filling before the one before it arrived would take that phase for
// the next.
static_assert(stages_for<64> % warpgroups == 0 && stages_for<128> % warpgroups == 0, "slots are dealt out");

template <int kHeads>
struct shared_layout {
  alignas(1024) std::uint8_t queries[warpgroups][kHeads * row_bytes];
  alignas(128) std::uint8_t tiles[stages_for<kHeads>][tile_bytes];
  alignas(16) float weights[warpgroups][kHeads];  // halved
  alignas(8) std::uint8_t masks[shared_tiles * 8];
  survivor_scratch survivors;
  std::uint64_t full[stages_for<kHeads>];
  std::uint64_t empty[stages_for<kHeads>];
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint4 pick(uint4 a, uint4 b, std::uint32_t first) {
  return {ptx::select(a.x, b.x, first), ptx::select(a.y, b.y, first), ptx::select(a.z, b.z, first),
          ptx::select(a.w, b.w, first)};
}

// Streams tiles [first, last) into the ring.
template <int kHeads, class Call>
__device__ __forceinline__ void produce(const Call& in, shared_layout<kHeads>& shared, job_cursor& cursor,
                                        std::int32_t first, std::int32_t last) {
  constexpr int stages = stages_for<kHeads>;
  const int lane = threadIdx.x % 32;
  int stage = 0;
  std::uint32_t phase = 1;  // a fresh slot is empty
  const std::int64_t page_keys = in.page_keys;
  const std::int64_t page_bytes = page_keys * (row_bytes + 4);
  const auto advance = [&] {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  };
  for (std::int32_t tile = first; tile < last;) {
    cursor.seek(tile);
    const score_job& job = in.jobs[cursor.job];
    const std::byte* const keys = job.keys;
    const std::byte* const* const pages = job.pages;
    const std::int64_t count = count_of(job), offset = job.pages_offset;
    const std::int32_t begin = cursor.begin, end = min(cursor.end, last);
    const auto page_at = [&](std::int64_t page) {
      return pages != nullptr ? pages[page] + offset : keys + page * page_bytes;
    };
    if (page_keys % tile_keys == 0) {  // a tile is in one page; each lane finds one of 32 tiles
      const auto page_of = [&](std::int32_t which) {
        const std::int64_t page =
            page_keys == tile_keys ? which - begin : std::int64_t{which - begin} * tile_keys / page_keys;
        return which < end ? reinterpret_cast<unsigned long long>(page_at(page)) : 0;
      };
      unsigned long long next = page_of(tile + lane);
      while (tile < end) {
        const unsigned long long now = next;
        const std::int32_t stop = min(tile + 32, end);
        next = page_of(tile + 32 + lane);
        for (int i = 0; tile < stop; ++i, ++tile) {
          const auto* const page = reinterpret_cast<const std::byte*>(__shfl_sync(~0u, now, i));
          if (lane == 0) {
            ptx::barrier_wait(&shared.empty[stage], phase);
            ptx::barrier_arrive_expect(&shared.full[stage], tile_bytes);
            std::uint8_t* const to = shared.tiles[stage];
            if (page_keys == tile_keys) {
              ptx::bulk_copy(to, page, tile_bytes, &shared.full[stage]);
            } else {
              const std::int64_t at = std::int64_t{tile - begin} * tile_keys % page_keys;
              ptx::bulk_copy(to, page + at * row_bytes, tile_keys * row_bytes, &shared.full[stage]);
              ptx::bulk_copy(to + tile_keys * row_bytes, page + page_keys * row_bytes + at * 4, tile_keys * 4,
                             &shared.full[stage]);
            }
          }
          advance();
        }
      }
      continue;
    }
    for (; tile < end; ++tile) {  // four lanes find 16 keys each, which are in one page
      const std::int64_t key = std::int64_t{tile - begin} * tile_keys + lane * 16;
      const bool mine = lane < 4 && key < count;
      const std::byte* const page = mine ? page_at(key / page_keys) : nullptr;
      const auto pieces = static_cast<std::uint32_t>(__popc(__ballot_sync(~0u, mine)));
      if (lane == 0) {
        ptx::barrier_wait(&shared.empty[stage], phase);
        ptx::barrier_arrive_expect(&shared.full[stage], pieces * 16 * (row_bytes + 4));
      }
      __syncwarp();
      if (mine) {
        std::uint8_t* const to = shared.tiles[stage];
        const std::int64_t at = key % page_keys;
        ptx::bulk_copy(to + lane * 16 * row_bytes, page + at * row_bytes, 16 * row_bytes,
                       &shared.full[stage]);
        ptx::bulk_copy(to + tile_keys * row_bytes + lane * 64, page + page_keys * row_bytes + at * 4, 64,
                       &shared.full[stage]);
      }
      advance();
    }
  }
}

// Query bytes in the order of contraction of the keys' fragments. Fragment byte 32 s + 16 h + 4 t + i (k-step
// s, half h, lane t of a quad) is byte 64 h + 16 t + 4 s + i of the row, so that what a lane needs of a row
// is contiguous.
template <int kHeads>
__device__ __forceinline__ void stage_hopper_queries(const score_job& job, std::int32_t heads,
                                                     std::uint8_t* to, float* weights) {
  const int thread = threadIdx.x % 128;
  const std::byte* const queries = job.queries;
  const float weight = thread < heads ? job.weights[thread] : 0.0f;
  uint4 pieces[kHeads / 16];
#pragma unroll
  for (int i = 0; i < kHeads / 16; ++i) {
    const int row = (thread + 128 * i) / 8;
    pieces[i] = row < heads ? reinterpret_cast<const uint4*>(queries)[thread + 128 * i] : uint4{0, 0, 0, 0};
  }
  if (thread < kHeads) weights[thread] = 0.5f * weight;
  const int half = thread / 4 % 2, t = thread % 4;
#pragma unroll
  for (int i = 0; i < kHeads / 16; ++i) {
    const int row = (thread + 128 * i) / 8;
    const std::uint32_t words[4] = {pieces[i].x, pieces[i].y, pieces[i].z, pieces[i].w};
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int chunk = (2 * s + half) ^ (row % 8);  // 128-byte swizzle
      *reinterpret_cast<std::uint32_t*>(to + row * row_bytes + chunk * 16 + t * 4) = words[s];
    }
  }
}

// What a lane takes of a tile: two 16-byte pieces of two keys, in the order it loads them, and one key's
// scale.
struct fragment {
  uint4 first[2], second[2];
  float scale;
};

template <int kHeads, class Call>
__device__ __forceinline__ void consume(const Call& in, shared_layout<kHeads>& shared, job_cursor& cursor,
                                        std::int32_t first, std::int32_t last, const survivor_mask& mask) {
  constexpr int stages = stages_for<kHeads>;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int row = lane / 4, t = lane % 4;
  const std::uint32_t odd = row % 2;
  // Lanes of odd rows take their pieces in the other order: so eight lanes hit all banks once.
  const std::uint32_t piece0 = static_cast<std::uint32_t>((warp * 16 + row) * row_bytes + t * 16) + odd * 64;
  const std::uint32_t piece1 = piece0 ^ 64;
  const std::uint32_t scale_at =
      tile_keys * row_bytes + static_cast<std::uint32_t>(warp * 16 + lane % 16) * 4;
  std::uint8_t* const queries = shared.queries[group];
  const std::uint64_t descriptor = wgmma::descriptor(ptx::kept(queries));
  const ptx::shared_address tiles = ptx::kept(shared.tiles);
  const ptx::shared_address full = ptx::kept(shared.full), empty = ptx::kept(shared.empty);
  const ptx::shared_address weights_at = ptx::kept(shared.weights[group] + 2 * t);
  std::uint32_t stage = group, phase = 0;

  const auto take = [&](fragment& f) {
    ptx::barrier_wait(full + stage * 8, phase);
    const ptx::shared_address keys = tiles + stage * tile_bytes;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      f.first[r] = ptx::load_shared_4(keys + piece0 + 8 * r * row_bytes);
      f.second[r] = ptx::load_shared_4(keys + piece1 + 8 * r * row_bytes);
    }
    f.scale = ptx::load_shared(keys + scale_at);
    ptx::fence_async_proxy();  // else the next copy's writes may overtake these reads
    ptx::barrier_arrive(empty + stage * 8);
    stage += warpgroups;
    if (stage >= stages) {
      stage = group;
      phase ^= 1;
    }
  };

  for (std::int32_t tile = first + group; tile < last;) {
    cursor.seek(tile);
    const std::int32_t begin = cursor.begin, end = min(cursor.end, last);
    const score_job& job = in.jobs[cursor.job];
    ptx::sync_threads<128>(group + 1);  // nobody multiplies by the old queries
    stage_hopper_queries<kHeads>(job, in.heads, queries, shared.weights[group]);
    ptx::fence_async_proxy();
    const float offset = job.offset;
    const job_outputs out = outputs_of(job, in.above);
    const bool reduces = out.group_max != nullptr || out.chunk_max != nullptr;
    ptx::sync_threads<128>(group + 1);
    float weights[kHeads / 4];
#pragma unroll
    for (int n = 0; n < kHeads / 8; ++n) {
      const float2 two = ptx::load_shared_2(weights_at + 32 * n);
      weights[2 * n] = two.x;
      weights[2 * n + 1] = two.y;
    }

    for (; tile < end; tile += warpgroups) {
      fragment f;
      take(f);
      const unsigned negative = __ballot_sync(~0u, f.scale < 0);
      const uint4 low0 = pick(f.second[0], f.first[0], odd), high0 = pick(f.first[0], f.second[0], odd);
      const uint4 low1 = pick(f.second[1], f.first[1], odd), high1 = pick(f.first[1], f.second[1], odd);
      float x[kHeads / 2];
      wgmma::fence();
      wgmma::multiply(x, low0.x, low1.x, high0.x, high1.x, descriptor, 0);
      wgmma::multiply(x, low0.y, low1.y, high0.y, high1.y, descriptor + 2, 1);
      wgmma::multiply(x, low0.z, low1.z, high0.z, high1.z, descriptor + 4, 1);
      wgmma::multiply(x, low0.w, low1.w, high0.w, high1.w, descriptor + 6, 1);
      wgmma::commit();
      wgmma::wait();
      wgmma::hold(x);
      // relu(q . (s k)) = |s| relu(sign(s) q . k)
      if (negative != 0) {
        const float sign0 = negative >> row & 1 ? -1.0f : 1.0f;
        const float sign1 = negative >> (row + 8) & 1 ? -1.0f : 1.0f;
#pragma unroll
        for (int n = 0; n < kHeads / 8; ++n) {
          x[4 * n] *= sign0;
          x[4 * n + 1] *= sign0;
          x[4 * n + 2] *= sign1;
          x[4 * n + 3] *= sign1;
        }
      }
      // x + |x| = 2 relu(x) exactly, and keeps NaN.
      float sums[2][2] = {};
#pragma unroll
      for (int n = 0; n < kHeads / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[i / 2][i % 2] =
              fmaf(weights[2 * n + i % 2], x[4 * n + i] + fabsf(x[4 * n + i]), sums[i / 2][i % 2]);
        }
      }
      // Over the quad: even lanes end up with the sum of `row`, odd ones with that of row + 8.
      const float sum0 = sums[0][0] + sums[0][1], sum1 = sums[1][0] + sums[1][1];
      float sum = t % 2 ? sum1 : sum0;
      sum += __shfl_xor_sync(~0u, t % 2 ? sum0 : sum1, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      sum = __shfl_sync(~0u, sum, lane % 8 * 4 + lane / 8 % 2);  // key warp * 16 + lane % 16
      // Inf - Inf and NaN - NaN are NaN.
      const std::int32_t key = (tile - begin) * tile_keys + warp * 16 + lane % 16;
      const float logit = in.logits(fmaf(sum, fabsf(f.scale) + (f.scale - f.scale), offset), job, key);
      if (out.logits != nullptr && key < out.count && lane < 16) out.logits[key] = logit;
      if (in.above) note_survivors(mask, tile, warp, key < out.count && logit > out.threshold);
      if (reduces) reduce_16(out, key, tile - begin, in.page_keys, logit);
    }
  }
}

#endif

template <int kHeads, class Call>
static __global__ void __launch_bounds__(hopper_threads, 1) hopper_kernel(const __grid_constant__ Call in) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<shared_layout<kHeads>*>(shared_bytes +
                                                           (-ptx::shared_address(shared_bytes).value & 1023));
  constexpr int stages = stages_for<kHeads>;
  if (threadIdx.x < stages) {
    ptx::barrier_init(&shared.full[threadIdx.x], 1);
    // Every thread for itself: that costs nothing, and racecheck sees no order by way of a neighbour.
    ptx::barrier_init(&shared.empty[threadIdx.x], 128);
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();

  job_cursor cursor(in.jobs, in.num_jobs);
  const auto block = static_cast<std::int32_t>(blockIdx.x), blocks = static_cast<std::int32_t>(gridDim.x);
  const std::int32_t first = cursor.first_of(block, blocks), last = cursor.first_of(block + 1, blocks);
  if (threadIdx.x >= consumers) {
    ptx::give_registers<56>();
    if (threadIdx.x < consumers + 32) produce(in, shared, cursor, first, last);
  } else {
    ptx::take_registers<152>();
    const survivor_mask mask{shared.masks, in.masks, in.mask_tiles, first};
    const survivor_board board{in.counters};
    const job_cursor start = cursor;
    std::uint32_t tag = 0;
    if (in.above && threadIdx.x == 0) tag = board.join(blocks);
    consume(in, shared, cursor, first, last, mask);
    if (in.above) {
      const auto sync = [] { ptx::sync_threads<consumers>(warpgroups + 1); };
      sync();
      write_survivors<consumers>(in.jobs, in.num_jobs, start, mask, board, tag, shared.survivors, sync);
    }
  }
#endif
}

template <int kHeads, class Call>
cudaError_t launch_hopper(const Call& call, int blocks, cudaStream_t stream) noexcept {
  constexpr int bytes = sizeof(shared_layout<kHeads>) + 1024;
  static_assert(bytes <= 227 * 1024, "what a block may have");
  constexpr auto kernel = hopper_kernel<kHeads, Call>;
  const cudaError_t code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (code != cudaSuccess) return code;
  return cuda::detail::launch_overlapped(kernel, dim3(static_cast<unsigned>(blocks)), hopper_threads, bytes,
                                         stream, true, 1, call);
}

}  // namespace detail

/// Whether the build has the kernels of launch_hopper(), which take sm_90a.
template <class Call>
bool has_hopper() noexcept {
  // Built for anything else the kernels are stubs, which shows in their registers.
  cudaFuncAttributes built{};
  return cudaFuncGetAttributes(&built, detail::hopper_kernel<64, Call>) == cudaSuccess && built.numRegs >= 64;
}

/// Scores all jobs on the tensor cores of compute capability 9.0: planar e4m3 keys, page_keys a multiple of 16. chunk_max
/// of the jobs must have been cleared: see launch_clear_chunks(). Enqueues; never allocates, can be captured.
/// \param blocks  one for each multiprocessor to use, below score_counters
template <class Call>
cudaError_t launch_hopper(const Call& call, int blocks, cudaStream_t stream) noexcept {
  static_assert(std::is_same_v<typename Call::keys_type, e4m3_keys>,
                "what wgmma multiplies; launch_portable() reads every format");
  return call.heads <= 64 ? detail::launch_hopper<64>(call, blocks, stream)
                          : detail::launch_hopper<128>(call, blocks, stream);
}

}  // namespace scoring
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
