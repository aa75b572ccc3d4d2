// SPDX-License-Identifier: MIT
#include <cuda_fp8.h>

#include "cuda/train/launch.cuh"
#include "cuda/train/transform.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / 32;

/// A block per row.
template <class From, class T>
__global__ void pad_rows_kernel(const From* from, std::int64_t count, std::int64_t width, T* to,
                                std::int64_t padded_count, std::int64_t padded_width) {
  const std::int64_t row = blockIdx.x % padded_count, batch = blockIdx.x / padded_count;
  const From* const source = from + (batch * count + row) * width;
  T* const target = to + (batch * padded_count + row) * padded_width;
  for (std::int64_t i = threadIdx.x; i < padded_width; i += blockDim.x)
    put(target + i, row < count && i < width ? to_float(source[i]) : 0.0f);
}

/// A warp per key.
template <class T>
__global__ void native_keys_kernel(const std::uint8_t* from, std::int64_t count, T* to, std::int64_t keys) {
  const std::int64_t key = std::int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (key >= keys) return;
  float x[4] = {};
  if (key < count) {
    const std::uint8_t* const row = from + key * 132;
    const float scale = *reinterpret_cast<const float*>(row + 128);
    for (int i = 0; i < 4; ++i) {
      __nv_fp8_e4m3 code;
      code.__x = row[4 * lane + i];
      x[i] = float(code) * scale;
    }
  }
  store4(to + key * 128 + 4 * lane, x);
}

/// A block transforms 32 columns, a warp at a time one row of each: the first index is transformed.
template <class T>
__global__ void key_map_kernel(const train_call call) {
  __shared__ float tile[128][33];
  const std::int64_t retriever = blockIdx.y, column = std::int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  const float* const wk = call.parameters + retriever * call.parameter_count + call.wk;
  const bool inside = column < call.hidden;
  for (int row = threadIdx.x / 32; row < 128; row += warps)
    tile[row][threadIdx.x % 32] = inside ? wk[row * call.hidden + column] : 0.0f;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int c = threadIdx.x / 32; c < 32; c += warps) {
    float x[4];
    for (int i = 0; i < 4; ++i) x[i] = tile[4 * lane + i][c];
    hadamard(x, lane);
    for (int i = 0; i < 4; ++i) tile[4 * lane + i][c] = x[i];
  }
  __syncthreads();
  T* const to = static_cast<T*>(call.key_map) + retriever * 128 * call.hidden;
  for (int row = threadIdx.x / 32; row < 128 && inside; row += warps)
    put(to + row * call.hidden + column, tile[row][threadIdx.x % 32]);
}

/// e4m3's value nearest to x, as to_e4m3() rounds.
__device__ __forceinline__ float through_e4m3(float x) {
  __nv_fp8_e4m3 code;
  code.__x = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  return float(code);
}

/// A warp per key. NaN in a key stays NaN.
template <class T>
__global__ void quantise_kernel(const train_call call, const float* from, std::int64_t retriever) {
  const std::int64_t key = std::int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (key >= call.keys) return;
  float x[4];
  load4(from + key * 128 + 4 * lane, x);
  if (call.quantise) {
    float largest = call.key_scale_floor;
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(x[i]));
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    const float scale = largest / 448.0f;
    for (int i = 0; i < 4; ++i) x[i] = isfinite(x[i]) ? through_e4m3(x[i] / scale) * scale : NAN;
  }
  store4(static_cast<T*>(call.keys_at) + (retriever * call.keys + key) * 128 + 4 * lane, x);
}

/// A block per padded window and retriever. The squares are added in double, as on the CPU.
template <class T>
__global__ void normalise_kernel(const train_call call) {
  const std::int64_t w = blockIdx.x, r = blockIdx.y, row = r * call.windows + w;
  const float* const a = call.first + row * (call.rank + call.heads);
  double squares = 0;
  for (std::int64_t i = threadIdx.x; i < call.true_rank; i += threads) squares += double(a[i]) * double(a[i]);
  squares = block_sum(squares);
  const auto root = float(sqrt(squares / double(call.true_rank) + double(call.q_norm_eps)));
  if (threadIdx.x == 0) call.root[row] = root;
  const float* const norm = call.parameters + r * call.parameter_count + call.q_norm;
  T* const to = static_cast<T*>(call.normed) + row * call.rank;
  const bool real = w < call.true_windows;  // without an eps a row of zeros would become NaN
  for (std::int64_t i = threadIdx.x; i < call.rank; i += threads)
    put(to + i, real ? a[i] / root * norm[i] : 0.0f);
  for (std::int64_t h = threadIdx.x; h < call.true_heads; h += threads)
    call.gates[(r * call.true_heads + h) * call.windows + w] = a[call.rank + h] * call.gate_scale;
}

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

/// A warp per head, padded window and retriever.
template <class T>
__global__ void finish_kernel(const train_call call) {
  const std::int64_t warp = std::int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp >= call.retrievers * call.windows * call.true_heads) return;
  const std::int64_t h = warp % call.true_heads, row = warp / call.true_heads, w = row % call.windows,
                     r = row / call.windows;
  float q[4];
  load4(call.flat + (row * call.true_heads + h) * 128 + 4 * lane, q);
  const auto round = [&] {
    if (call.bf16_rounding)
      for (int i = 0; i < 4; ++i) q[i] = rounded(q[i]);
  };
  round();
  if (call.rope && w < call.true_windows) {
    turn(q, lane, call.turns + w * 64, false);
    round();
  }
  hadamard(q, lane);
  store4(static_cast<T*>(call.queries) + ((r * call.true_heads + h) * call.windows + w) * 128 + 4 * lane, q);
}

constexpr int key_groups = 4;

/// A block per 32 windows, chunk and retriever; a thread has one window and every fourth key. Reads what the product
/// has just left in the L2 cache, once.
__global__ void reduce_kernel(const train_call call, std::int64_t chunk, std::int64_t count) {
  __shared__ float best[key_groups][32];
  __shared__ int place[key_groups][32];
  const int lane = threadIdx.x, group = threadIdx.y;
  const std::int64_t w = std::int64_t(blockIdx.x) * 32 + lane, c = blockIdx.y, r = blockIdx.z;
  const std::int64_t heads = call.true_heads, windows = call.windows, columns = heads * windows;
  float top = -INFINITY;
  int at = 0;
  if (w < call.true_windows) {
    const float offset = call.parameters[r * call.parameter_count + call.offset];
    const float* const gates = call.gates + r * columns + w;
    const float* const dots = call.tile + (r * count + c) * call.keys_per_chunk * columns + w;
    for (int key = group; key < call.keys_per_chunk; key += key_groups) {
      const float* const row = dots + key * columns;
      float z = offset;
#pragma unroll 8  // loads in flight
      for (std::int64_t h = 0; h < heads; ++h) {
        const float s = row[h * windows];
        z = fmaf(gates[h * windows], s > 0 ? s : s <= 0 ? 0.0f : s, z);
      }
      if (z > top || z != z) {  // NaN must not go unseen
        top = z;
        at = key;
      }
    }
  }
  best[group][lane] = top;
  place[group][lane] = at;
  __syncthreads();
  if (group > 0 || w >= call.true_windows) return;
  for (int g = 1; g < key_groups; ++g) {
    const float z = best[g][lane];
    if (z > top || z != z || (z == top && place[g][lane] < at)) {
      top = z;
      at = place[g][lane];
    }
  }
  const std::int64_t to = (r * call.chunks + chunk + c) * call.true_windows + w;
  call.scores[to] = top;
  call.where[to] = at;
}

}  // namespace

cudaError_t launch_pad_rows(const train_call& call, const void* from, dtype type, std::int64_t count,
                            std::int64_t width, void* to, std::int64_t padded_count,
                            std::int64_t padded_width, std::int64_t batches) noexcept {
  if (padded_count * batches == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>(padded_count * batches);
  return by_operand(call, [&](auto zero) {
    const auto launch = [&](auto* source) {
      pad_rows_kernel<<<grid, 128, 0, call.stream>>>(source, count, width, static_cast<decltype(zero)*>(to),
                                                     padded_count, padded_width);
    };
    if (type == dtype::bf16)
      launch(static_cast<const __nv_bfloat16*>(from));
    else
      launch(static_cast<const float*>(from));
  });
}

cudaError_t launch_native_keys(const train_call& call, const void* from, std::int64_t count,
                               std::int64_t retriever) noexcept {
  if (call.keys == 0) return cudaSuccess;
  const auto* const bytes = static_cast<const std::uint8_t*>(from);
  const std::int64_t at = retriever * call.keys * 128;
  return by_operand(call, [&](auto zero) {
    native_keys_kernel<<<blocks(call.keys, warps), threads, 0, call.stream>>>(
        bytes, count, static_cast<decltype(zero)*>(call.keys_at) + at, call.keys);
  });
}

cudaError_t launch_key_map(const train_call& call) noexcept {
  const dim3 grid(blocks(call.hidden, 32), unsigned(call.retrievers));
  return by_operand(
      call, [&](auto zero) { key_map_kernel<decltype(zero)><<<grid, threads, 0, call.stream>>>(call); });
}

cudaError_t launch_quantise(const train_call& call, const float* from, std::int64_t retriever) noexcept {
  if (call.keys == 0) return cudaSuccess;
  return by_operand(call, [&](auto zero) {
    quantise_kernel<decltype(zero)>
        <<<blocks(call.keys, warps), threads, 0, call.stream>>>(call, from, retriever);
  });
}

cudaError_t launch_normalise(const train_call& call) noexcept {
  const dim3 grid(unsigned(call.windows), unsigned(call.retrievers));
  return by_operand(
      call, [&](auto zero) { normalise_kernel<decltype(zero)><<<grid, threads, 0, call.stream>>>(call); });
}

cudaError_t launch_finish(const train_call& call) noexcept {
  const unsigned grid = blocks(call.retrievers * call.windows * call.true_heads, warps);
  return by_operand(
      call, [&](auto zero) { finish_kernel<decltype(zero)><<<grid, threads, 0, call.stream>>>(call); });
}

cudaError_t launch_reduce(const train_call& call, std::int64_t chunk, std::int64_t count) noexcept {
  const dim3 grid(blocks(call.true_windows, 32), unsigned(count), unsigned(call.retrievers));
  reduce_kernel<<<grid, dim3(32, key_groups), 0, call.stream>>>(call, chunk, count);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
