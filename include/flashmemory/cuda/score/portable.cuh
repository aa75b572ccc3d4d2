// SPDX-License-Identifier: MIT
#pragma once

// Scores keys of any layout on any device, without tensor cores.
//
// A block of 64 threads takes a contiguous range of 64-key tiles, as in hopper.cuh; a thread owns one
// key and goes over it once for every eight heads, whose queries it reads from shared memory, all lanes the
// same address.

#include <cuda_fp16.h>

#include <cstdint>
#include <flashmemory/cuda/score/call.cuh>
#include <flashmemory/cuda/score/job_cursor.cuh>
#include <flashmemory/cuda/score/outputs.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace scoring {
namespace detail {

inline constexpr int words_per_key = 32;
inline constexpr int heads_at_once = 8;

struct shared_portable {
  __half queries[max_score_heads][words_per_key * 4];  // 2^-8 of the values
  float weights[max_score_heads];
  alignas(8) std::uint8_t masks[shared_tiles * 8];
  survivor_scratch survivors;
};

inline __device__ void stage_portable_queries(const score_job& job, std::int32_t heads,
                                              shared_portable& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < max_score_heads * words_per_key * 4; i += tile_keys) {
    const int head = i / 128;
    const float value = head < heads ? e4m3_keys::number(static_cast<std::uint32_t>(job.queries[i])) : 0.0f;
    shared.queries[head][i % 128] = __float2half(value);  // exact
  }
  for (int i = static_cast<int>(threadIdx.x); i < max_score_heads; i += tile_keys) {
    shared.weights[i] = i < heads ? job.weights[i] : 0.0f;
  }
}

template <class Key>
__device__ float weighted_sum(const Key& key, float sign, std::int32_t heads, const shared_portable& shared) {
  float sum = 0;
  for (int head = 0; head < heads; head += heads_at_once) {
    float dots[heads_at_once] = {};
    for (int w = 0; w < words_per_key; ++w) {
      float k[4];
      key.four(w, k);
#pragma unroll
      for (int h = 0; h < heads_at_once; ++h) {
        const auto* q = reinterpret_cast<const __half2*>(&shared.queries[head + h][4 * w]);
        const float2 a = __half22float2(q[0]), b = __half22float2(q[1]);
        dots[h] = fmaf(a.x, k[0], dots[h]);
        dots[h] = fmaf(a.y, k[1], dots[h]);
        dots[h] = fmaf(b.x, k[2], dots[h]);
        dots[h] = fmaf(b.y, k[3], dots[h]);
      }
    }
    for (int h = 0; h < heads_at_once; ++h) {
      const float dot = dots[h] * sign;
      sum = fmaf(shared.weights[head + h], dot < 0 ? 0.0f : dot, sum);
    }
  }
  return sum;
}

template <class Call>
static __global__ void __launch_bounds__(tile_keys) portable_kernel(const Call in) {
  __shared__ shared_portable shared;
  const auto block = static_cast<std::int32_t>(blockIdx.x), blocks = static_cast<std::int32_t>(gridDim.x);
  job_cursor cursor(in.jobs, in.num_jobs);
  const std::int32_t first = cursor.first_of(block, blocks), last = cursor.first_of(block + 1, blocks);
  const survivor_mask mask{shared.masks, in.masks, in.mask_tiles, first};
  const survivor_board board{in.counters};
  const job_cursor start = cursor;
  std::uint32_t tag = 0;
  if (in.above && threadIdx.x == 0) tag = board.join(blocks);

  for (std::int32_t tile = first; tile < last; ++tile) {
    if (tile == first || tile >= cursor.end) {
      cursor.seek(tile);
      __syncthreads();
      stage_portable_queries(in.jobs[cursor.job], in.heads, shared);
      __syncthreads();
    }
    const score_job& job = in.jobs[cursor.job];
    const std::int32_t key = (tile - cursor.begin) * tile_keys + static_cast<std::int32_t>(threadIdx.x);
    float logit = 0;
    if (key < count_of(job)) {
      const std::int64_t page = key / in.page_keys, at = key % in.page_keys;
      const std::byte* const base = job.pages != nullptr ? job.pages[page] + job.pages_offset
                                                         : job.keys + page * in.keys.page_bytes(in.page_keys);
      const auto mine = in.keys.at(base, at, in.page_keys);
      const float scale = mine.scale();
      const float sum = weighted_sum(mine, scale < 0 ? -1.0f : 1.0f, in.heads, shared);
      logit = in.logits(fmaf(sum, fabsf(scale) + (scale - scale), job.offset), job, key);
    }
    write_32(outputs_of(job, in.above), key, in.page_keys, logit, in.above ? mask.of(tile) : nullptr);
  }
  if (!in.above) return;
  __syncthreads();
  write_survivors<tile_keys>(in.jobs, in.num_jobs, start, mask, board, tag, shared.survivors,
                             [] { __syncthreads(); });
}

template <class Call>
static __global__ void clear_chunks_kernel(const Call in) {
  for (std::int32_t j = static_cast<std::int32_t>(blockIdx.x); j < in.num_jobs;
       j += static_cast<std::int32_t>(gridDim.x)) {
    float* const chunks = in.jobs[j].chunk_max;
    if (chunks == nullptr) continue;
    const std::int64_t count = (count_of(in.jobs[j]) + in.page_keys - 1) / in.page_keys;
    for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) chunks[i] = __uint_as_float(0xff800000u);
  }
}

}  // namespace detail

/// Clears what the jobs' chunk_max point to, before they are scored. Enqueues.
/// \param blocks  at most
template <class Call>
cudaError_t launch_clear_chunks(const Call& call, int blocks, cudaStream_t stream) noexcept {
  const int grid = call.num_jobs < blocks ? call.num_jobs : blocks;
  detail::clear_chunks_kernel<<<static_cast<unsigned>(grid), 512, 0, stream>>>(call);
  return cudaGetLastError();
}

/// Scores all jobs on any device, with keys of any format and layout; otherwise as launch_hopper().
/// \param blocks  some four for each multiprocessor to use, below score_counters
template <class Call>
cudaError_t launch_portable(const Call& call, int blocks, cudaStream_t stream) noexcept {
  detail::portable_kernel<<<static_cast<unsigned>(blocks), detail::tile_keys, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace scoring
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
