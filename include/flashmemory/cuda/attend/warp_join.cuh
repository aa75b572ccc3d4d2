// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/finish.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// Warps of a block of the tensor-core kernel that compute.
inline constexpr int consumer_warps = 4;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// What a consumer thread accumulates of its rows g and, with two halves, g + 8; see tensor_core_kernel.
template <int kDim, int kHalves>
struct accumulator {
  static constexpr int columns = kDim / 64;
  float o[columns][8][4];
  float maximum[kHalves], sum[kHalves];

  __device__ void clear() {
#pragma unroll
    for (int c = 0; c < columns; ++c)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[c][j][i] = 0;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      maximum[half] = -INFINITY;
      sum[half] = 0;
    }
  }
};

/// Where element 4 f of a row is in a warp's own copy of it: so 8 lanes that store together use all banks.
__device__ __forceinline__ int copy_place(int row, int f) { return f ^ (f >> 3 & 1) ^ (row & 1) << 1; }

/// Joins the consumer warps' accumulators, which are over different entries, in shared memory; in a fixed order. Few
/// rows leave room for copies, so that warps need not take turns.
/// \param shared  maxima and sums [consumer_warps][tile_rows] of scratch; the result: maximum and sum [tile_rows],
///     values [tile_rows * kDim], complete and visible to all consumer warps at the end
template <int kDim, int kHalves, class Memory>
__device__ __forceinline__ void join_warps(accumulator<kDim, kHalves>& acc, std::int32_t num_rows,
                                           Memory& shared) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    acc.sum[half] += __shfl_xor_sync(~0u, acc.sum[half], 1);
    acc.sum[half] += __shfl_xor_sync(~0u, acc.sum[half], 2);
    if (t == 0) {
      shared.maxima[warp][g + 8 * half] = acc.maximum[half];
      shared.sums[warp][g + 8 * half] = acc.sum[half];
    }
  }
  tile_barrier();
  float weight[kHalves];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int r = g + 8 * half;
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int w = 0; w < consumer_warps; ++w) top = fmaxf(top, shared.maxima[w][r]);
    const float reference = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int w = 0; w < consumer_warps; ++w)
      total += shared.sums[w][r] * ptx::exp2(shared.maxima[w][r] - reference);
    weight[half] = ptx::exp2(acc.maximum[half] - reference);
    if (warp == 0 && t == 0) {
      shared.maximum[r] = top;
      shared.sum[r] = total;
    }
  }
  const int copies = kHalves == 2 ? 1 : num_rows <= tile_rows / 4 ? 4 : 2, copy_rows = tile_rows / copies;
  for (int turn = 0; turn < consumer_warps / copies; ++turn) {
    if (warp / copies == turn) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int r = g + 8 * half;
        if (r >= num_rows) continue;
        auto* const to = reinterpret_cast<float4*>(shared.values + (warp % copies * copy_rows + r) * kDim);
#pragma unroll
        for (int c = 0; c < kDim / 64; ++c)
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
              const int f = 16 * c + 2 * (2 * t + i) + j / 4;
              float4* const four = to + (kHalves == 2 ? f : copy_place(r, f));
              float4 x = turn == 0 ? make_float4(0, 0, 0, 0) : *four;
              x.x += acc.o[c][j][2 * half + i] * weight[half];
              x.y += acc.o[c][j + 1][2 * half + i] * weight[half];
              x.z += acc.o[c][j + 2][2 * half + i] * weight[half];
              x.w += acc.o[c][j + 3][2 * half + i] * weight[half];
              *four = x;
            }
      }
    }
    tile_barrier();
  }
  if constexpr (kHalves == 1) {
    constexpr int fours = kDim / 4;  // of a row; the eight that copy_place() permutes are one warp's
    auto* const values = reinterpret_cast<float4*>(shared.values);
    const int end = num_rows * fours, lane = threadIdx.x % 32;
    for (int first = 32 * warp; first < end; first += tile_threads) {
      const int i = first + lane, place = i / fours * fours + copy_place(i / fours, i % fours);
      float4 x = make_float4(0, 0, 0, 0);
      for (int copy = 0; copy < copies && i < end; ++copy) {
        const float4 y = values[copy * copy_rows * fours + place];
        x.x += y.x;
        x.y += y.y;
        x.z += y.z;
        x.w += y.w;
      }
      __syncwarp();
      if (i < end) values[i] = x;
    }
    tile_barrier();
  }
}

#endif

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
