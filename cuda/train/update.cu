// SPDX-License-Identifier: MIT
#include "cuda/train/launch.cuh"
#include "cuda/train/layout.hpp"
#include "cuda/train/transform.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

/// partial[1 + block] = the sum of squares of every gridDim-th stretch.
__global__ void squares_kernel(const update_call call, double* partial) {
  const std::int64_t count = call.retrievers * call.parameter_count / 4;
  const auto* const gradient = reinterpret_cast<const float4*>(call.gradient);
  double sum = 0;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += std::int64_t(gridDim.x) * blockDim.x) {
    const float4 g = gradient[i];
    for (const float x : {g.x * call.share, g.y * call.share, g.z * call.share, g.w * call.share})
      sum += double(x) * double(x);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[1 + blockIdx.x] = sum;
}

__global__ void total_kernel(double* partial) {
  double sum = 0;
  for (int i = threadIdx.x; i < partial_sums; i += blockDim.x) sum += partial[1 + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[0] = sum;
}

/// A thread per value; with the CPU's roundings. Zeros of padding stay zero.
__global__ void adamw_kernel(const update_call call) {
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= call.retrievers * call.parameter_count) return;
  const std::int64_t place = i % call.parameter_count;
  const float g = call.scale * (call.gradient[i] * call.share);
  const float m = fmaf(call.beta1, call.m[i], (1 - call.beta1) * g);
  const float v = fmaf(call.beta2, call.v[i], (1 - call.beta2) * (g * g));
  call.m[i] = m;
  call.v[i] = v;
  const float root = sqrtf(v / call.correction2) + call.eps;
  float p = call.parameters[i];
  const float decay = place < call.q_norm ? call.decay : 0.0f;
  p = fmaf(-call.rate, fmaf(decay, p, m / call.correction1 / root), p);
  call.parameters[i] = p;
  if (call.copies != nullptr && place < call.matrices)
    static_cast<__nv_bfloat16*>(call.copies)[i / call.parameter_count * call.matrices + place] =
        __float2bfloat16_rn(p);
}

__global__ void copies_kernel(const update_call call) {
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= call.retrievers * call.matrices) return;
  static_cast<__nv_bfloat16*>(call.copies)[i] =
      __float2bfloat16_rn(call.parameters[i / call.matrices * call.parameter_count + i % call.matrices]);
}

}  // namespace

cudaError_t launch_square_sum(const update_call& call, double* partial) noexcept {
  squares_kernel<<<unsigned(partial_sums), 256, 0, call.stream>>>(call, partial);
  total_kernel<<<1, 256, 0, call.stream>>>(partial);
  return cudaGetLastError();
}

cudaError_t launch_adamw(const update_call& call) noexcept {
  adamw_kernel<<<blocks(call.retrievers * call.parameter_count, 256), 256, 0, call.stream>>>(call);
  return cudaGetLastError();
}

cudaError_t launch_copies(const update_call& call) noexcept {
  copies_kernel<<<blocks(call.retrievers * call.matrices, 256), 256, 0, call.stream>>>(call);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
