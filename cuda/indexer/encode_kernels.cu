// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "cuda/core/hadamard.cuh"
#include "cuda/indexer/encode_kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

__device__ __forceinline__ float load(const void* data, dtype type, std::int64_t at) {
  if (type == dtype::f32) return static_cast<const float*>(data)[at];
  if (type == dtype::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
  return __half2float(static_cast<const __half*>(data)[at]);
}

__device__ __forceinline__ void store(const operand& to, std::int32_t retriever, std::int32_t row,
                                      std::int32_t column, float value) {
  const std::int64_t at = (std::int64_t(retriever) * to.capacity + row) * to.width + column;
  if (to.type == dtype::f32) {
    static_cast<float*>(to.data)[at] = value;
    return;
  }
  auto* const data = static_cast<__nv_bfloat16*>(to.data);
  const __nv_bfloat16 high = __float2bfloat16_rn(value);
  data[at] = high;
  if (to.parts == 2)
    data[at + std::int64_t(to.rows) * to.width] = __float2bfloat16_rn(value - __bfloat162float(high));
}

/// The product of an operand's row: that of its parts, added up.
__device__ __forceinline__ float result(const float* product, const operand& from, std::int32_t retriever,
                                        std::int32_t row, std::int32_t width, std::int32_t column) {
  const std::int64_t at = (std::int64_t(retriever) * from.capacity + row) * width + column;
  return from.parts == 2 ? product[at] + product[at + std::int64_t(from.rows) * width] : product[at];
}

constexpr int threads = 256;

__global__ void gather_kernel(const hidden_rows hidden, const operand to) {
  const int row = blockIdx.x, retriever = blockIdx.y;
  for (int i = threadIdx.x; i < to.width; i += threads)
    store(to, retriever, row, i,
          load(hidden.data[retriever], hidden.type[retriever], row * hidden.stride[retriever] + i));
}

/// One block per row and retriever; a fixed tree adds the squares up.
__global__ void normalise_kernel(const float* product, const operand from, const float* norm, float eps,
                                 std::int32_t heads, float gate_scale, const operand to, float* gates) {
  const int row = blockIdx.x, retriever = blockIdx.y, rank = to.width, width = rank + heads;
  float squares = 0;
  for (int i = threadIdx.x; i < rank; i += threads) {
    const float x = result(product, from, retriever, row, width, i);
    squares += x * x;
  }
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
  __shared__ float warps[threads / 32];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < threads / 32; ++w) total += warps[w];
  const float root = sqrtf(total / float(rank) + eps);
  for (int i = threadIdx.x; i < rank; i += threads)
    store(to, retriever, row, i,
          result(product, from, retriever, row, width, i) / root * norm[std::int64_t(retriever) * rank + i]);
  for (int h = threadIdx.x; h < heads; h += threads)
    gates[(std::int64_t(retriever) * to.rows + row) * heads + h] =
        result(product, from, retriever, row, width, rank + h) * gate_scale;
}

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

/// One warp per row, head and retriever; a lane has four consecutive elements of the head, so that RoPE's pairs and
/// the Hadamard strides 1 and 2 stay inside a lane.
__global__ void finish_kernel(const finish_call call) {
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int rows = call.from.rows;
  if (warp >= call.retrievers * rows * call.heads) return;
  const int head = warp % call.heads, row = warp / call.heads % rows, retriever = warp / call.heads / rows;
  float q[4];
  for (int i = 0; i < 4; ++i) {
    q[i] = result(call.product, call.from, retriever, row, call.heads * 128, head * 128 + 4 * lane + i);
    if (call.bf16_rounding) q[i] = rounded(q[i]);
  }
  if (call.frequencies != nullptr && lane >= 16) {
    const float position = float(max(0ll, min(static_cast<long long>(call.positions[row]),
                                              static_cast<long long>(call.max_positions - 1))));
    for (int pair = 0; pair < 2; ++pair) {
      // The product is rounded to float on purpose: the model's keys were turned by the same rounded angles.
      const float angle = __fmul_rn(position, call.frequencies[2 * lane - 32 + pair]);
      float sine, cosine;
      sincosf(angle, &sine, &cosine);
      const float x = q[2 * pair], y = q[2 * pair + 1];
      q[2 * pair] = __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine));
      q[2 * pair + 1] = __fadd_rn(__fmul_rn(x, sine), __fmul_rn(y, cosine));
      if (call.bf16_rounding) {
        q[2 * pair] = rounded(q[2 * pair]);
        q[2 * pair + 1] = rounded(q[2 * pair + 1]);
      }
    }
  }
  hadamard_sums(q, lane);
  float largest = 0;
  for (int i = 0; i < 4; ++i) {
    q[i] *= 0.088388347648318447f;  // 1 / sqrt(128)
    largest = fmaxf(largest, fabsf(q[i]));
  }
  const std::int64_t at = std::int64_t(warp) * 128 + 4 * lane;
  if (call.full_precision != nullptr)
    *reinterpret_cast<float4*>(call.full_precision + at) = make_float4(q[0], q[1], q[2], q[3]);
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  const float scale = fmaxf(largest, 1e-4f) / 448.0f;
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i)
    word |= std::uint32_t(__nv_cvt_float_to_fp8(q[i] / scale, __NV_SATFINITE, __NV_E4M3)) << (8 * i);
  *reinterpret_cast<std::uint32_t*>(call.queries + at) = word;
  if (lane == 0) call.weights[warp] *= scale;
}

}  // namespace

cudaError_t launch_gather(const hidden_rows& hidden, std::int32_t retrievers, const operand& to,
                          cudaStream_t stream) noexcept {
  gather_kernel<<<dim3(unsigned(to.rows), unsigned(retrievers)), threads, 0, stream>>>(hidden, to);
  return cudaGetLastError();
}

cudaError_t launch_normalise(const float* product, const operand& from, const float* norm, float eps,
                             std::int32_t retrievers, std::int32_t heads, float gate_scale, const operand& to,
                             float* gates, cudaStream_t stream) noexcept {
  normalise_kernel<<<dim3(unsigned(to.rows), unsigned(retrievers)), threads, 0, stream>>>(
      product, from, norm, eps, heads, gate_scale, to, gates);
  return cudaGetLastError();
}

cudaError_t launch_finish(const finish_call& call, cudaStream_t stream) noexcept {
  const std::int64_t warps = std::int64_t(call.retrievers) * call.from.rows * call.heads;
  finish_kernel<<<unsigned((warps + 3) / 4), 128, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
