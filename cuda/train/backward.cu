// SPDX-License-Identifier: MIT
#include "cuda/train/launch.cuh"
#include "cuda/train/transform.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / 32;

/// A block per retriever: the pairs' sum in double, in a fixed order.
__global__ void offset_kernel(const train_call call) {
  const std::int64_t r = blockIdx.x, pairs = call.chunks * call.true_windows;
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < pairs; i += blockDim.x) sum += double(call.scores[r * pairs + i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) call.gradient[r * call.parameter_count + call.offset] += float(sum);
}

// Chunks that a warp has in flight: each waits for its key and for a sum over the warp.
constexpr int in_flight = 4;

/// A warp per head, padded window and retriever goes through the chunks in order: with s = q . key of a chunk's best
/// key, where s > 0: d_gate += dz * s, pair = dz * gate, d_q += pair * key. Then the query's gradient is transformed
/// and turned back.
template <class T>
__global__ void query_gradient_kernel(const train_call call) {
  const std::int64_t warp = std::int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t heads = call.true_heads, windows = call.true_windows;
  if (warp >= call.retrievers * call.windows * heads) return;
  const std::int64_t h = warp % heads, row = warp / heads, w = row % call.windows, r = row / call.windows;
  T* const d_flat = static_cast<T*>(call.d_flat) + (row * heads + h) * 128 + 4 * lane;
  T* const d_gate = static_cast<T*>(call.d_first) + row * (call.rank + call.heads) + call.rank + h;
  float d_q[4] = {};
  if (w >= windows) {
    store4(d_flat, d_q);
    if (lane == 0) put(d_gate, 0.0f);
    return;
  }
  float q[4];
  load4(static_cast<const T*>(call.queries) + ((r * heads + h) * call.windows + w) * 128 + 4 * lane, q);
  const T* const keys = static_cast<const T*>(call.keys_at) + r * call.keys * 128 + 4 * lane;
  const float gate = call.gates[(r * heads + h) * call.windows + w];
  float sum = 0;
  for (std::int64_t first = 0; first < call.chunks; first += in_flight) {
    float dz[in_flight], s[in_flight], key[in_flight][4];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      const std::int64_t c = first + i, at = (r * call.chunks + c) * windows + w;
      dz[i] = c < call.chunks ? call.scores[at] : 0.0f;
      s[i] = 0;
      if (dz[i] == 0) continue;
      load4(keys + (c * call.keys_per_chunk + call.where[at]) * 128, key[i]);
      for (int j = 0; j < 4; ++j) s[i] = fmaf(q[j], key[i][j], s[i]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
#pragma unroll
      for (int i = 0; i < in_flight; ++i) s[i] += __shfl_xor_sync(~0u, s[i], step);
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (dz[i] == 0) continue;
      const bool open = s[i] > 0;
      const float pair = open ? dz[i] * gate : 0.0f;
      if (lane == 0) call.pairs[((r * call.chunks + first + i) * windows + w) * heads + h] = pair;
      if (!open) continue;
      sum += dz[i] * s[i];
      for (int j = 0; j < 4; ++j) d_q[j] = fmaf(pair, key[i][j], d_q[j]);
    }
  }
  hadamard(d_q, lane);  // its own transpose
  if (call.rope) turn(d_q, lane, call.turns + w * 64, true);
  store4(d_flat, d_q);
  if (lane == 0) put(d_gate, sum * call.gate_scale);
}

// Chunks that share one pass over a window's heads.
constexpr int chunks_per_warp = 4;

/// A warp per window, four chunks and retriever: gradient of the chunk's best key from that window,
/// tile[r, c, w] = sum over heads in order of pair * q. What has no gradient is left out here and below.
template <class T>
__global__ void join_heads_kernel(const train_call call, std::int64_t chunk, std::int64_t count) {
  const std::int64_t groups = (count + chunks_per_warp - 1) / chunks_per_warp;
  const std::int64_t warp = std::int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t heads = call.true_heads, windows = call.true_windows;
  if (warp >= call.retrievers * groups * windows) return;
  const std::int64_t w = warp % windows, group = warp / windows % groups, r = warp / windows / groups;
  const std::int64_t first = group * chunks_per_warp;
  float sums[chunks_per_warp][4] = {};
  bool used[chunks_per_warp];
  const float* pairs[chunks_per_warp];
  bool any = false;
  for (int i = 0; i < chunks_per_warp; ++i) {
    const std::int64_t at = (r * call.chunks + chunk + min(first + i, count - 1)) * windows + w;
    used[i] = first + i < count && call.scores[at] != 0;
    pairs[i] = call.pairs + at * heads;
    any = any || used[i];
  }
  if (!any) return;
  const T* const queries =
      static_cast<const T*>(call.queries) + (r * heads * call.windows + w) * 128 + 4 * lane;
#pragma unroll 4
  for (std::int64_t h = 0; h < heads; ++h) {
    float q[4];
    load4(queries + h * call.windows * 128, q);
    for (int i = 0; i < chunks_per_warp; ++i) {
      if (!used[i]) continue;
      const float pair = pairs[i][h];
      for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(pair, q[j], sums[i][j]);
    }
  }
  for (int i = 0; i < chunks_per_warp; ++i)
    if (used[i]) store4(call.tile + ((r * count + first + i) * windows + w) * 128 + 4 * lane, sums[i]);
}

/// A warp per key and retriever: d_keys = the sum over windows in order of what those gave whose best key it is.
template <class T>
__global__ void collect_windows_kernel(const train_call call, std::int64_t chunk, std::int64_t count) {
  const std::int64_t warp = std::int64_t(blockIdx.x) * warps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t rows = count * call.keys_per_chunk, windows = call.true_windows;
  if (warp >= call.retrievers * rows) return;
  const std::int64_t r = warp / rows, c = warp % rows / call.keys_per_chunk, key = warp % call.keys_per_chunk;
  const std::int64_t at = (r * call.chunks + chunk + c) * windows;
  float sum[4] = {};
  for (std::int64_t base = 0; base < windows; base += 32) {
    const std::int64_t mine = base + lane;
    const bool hit = mine < windows && call.where[at + mine] == key && call.scores[at + mine] != 0;
    for (unsigned hits = __ballot_sync(~0u, hit); hits != 0; hits &= hits - 1) {
      const std::int64_t w = base + __ffs(int(hits)) - 1;
      float x[4];
      load4(call.tile + ((r * count + c) * windows + w) * 128 + 4 * lane, x);
      for (int j = 0; j < 4; ++j) sum[j] += x[j];
    }
  }
  store4(static_cast<T*>(call.d_keys) + (r * call.keys + (chunk + c) * call.keys_per_chunk + key) * 128 +
             4 * lane,
         sum);
}

template <class T>
__global__ void clear_key_tail_kernel(const train_call call) {
  const std::int64_t used = call.chunks * call.keys_per_chunk;
  T* const tail = static_cast<T*>(call.d_keys) + (std::int64_t(blockIdx.x) * call.keys + used) * 128;
  for (std::int64_t i = threadIdx.x; i < (call.keys - used) * 128; i += blockDim.x) put(tail + i, 0.0f);
}

/// A block transforms 32 columns and adds them to wk's gradient.
__global__ void map_gradient_kernel(const train_call call) {
  __shared__ float tile[128][33];
  const std::int64_t r = blockIdx.y, column = std::int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  const float* const from = call.d_map + r * 128 * call.hidden;
  const bool inside = column < call.hidden;
  for (int row = threadIdx.x / 32; row < 128; row += warps)
    tile[row][threadIdx.x % 32] = inside ? from[row * call.hidden + column] : 0.0f;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int c = threadIdx.x / 32; c < 32; c += warps) {
    float x[4];
    for (int i = 0; i < 4; ++i) x[i] = tile[4 * lane + i][c];
    hadamard(x, lane);
    for (int i = 0; i < 4; ++i) tile[4 * lane + i][c] = x[i];
  }
  __syncthreads();
  float* const to = call.gradient + r * call.parameter_count + call.wk;
  for (int row = threadIdx.x / 32; row < 128 && inside; row += warps)
    to[row * call.hidden + column] += tile[row][threadIdx.x % 32];
}

/// A block per padded window and retriever: with n = norm, a = the row before it, root = its RMS,
/// d_a = d n / root - a * (sum of d n a) / rank / root^3.
template <class T>
__global__ void norm_gradient_kernel(const train_call call) {
  const std::int64_t w = blockIdx.x, r = blockIdx.y, row = r * call.windows + w;
  const float* const a = call.first + row * (call.rank + call.heads);
  const float* const d = call.d_low + row * call.rank;
  const float* const norm = call.parameters + r * call.parameter_count + call.q_norm;
  double along = 0;
  for (std::int64_t i = threadIdx.x; i < call.true_rank; i += threads)
    along += double(d[i] * norm[i]) * double(a[i]);
  along = block_sum(along);
  const bool real = w < call.true_windows;
  const float root = call.root[row];
  const float pull = float(along / double(call.true_rank)) / (root * root * root);
  T* const to = static_cast<T*>(call.d_first) + row * (call.rank + call.heads);
  for (std::int64_t i = threadIdx.x; i < call.rank; i += threads)
    put(to + i, real ? d[i] * norm[i] / root - a[i] * pull : 0.0f);
  for (std::int64_t i = call.rank + call.true_heads + threadIdx.x; i < call.rank + call.heads; i += threads)
    put(to + i, 0.0f);
}

/// A thread per value of q_norm; windows are added up in order.
__global__ void norm_weight_kernel(const train_call call) {
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x, r = blockIdx.y;
  if (i >= call.true_rank) return;
  float sum = 0;
  for (std::int64_t w = 0; w < call.true_windows; ++w) {
    const std::int64_t row = r * call.windows + w;
    sum += call.d_low[row * call.rank + i] * call.first[row * (call.rank + call.heads) + i] / call.root[row];
  }
  call.gradient[r * call.parameter_count + call.q_norm + i] += sum;
}

}  // namespace

cudaError_t launch_offset_gradient(const train_call& call) noexcept {
  offset_kernel<<<unsigned(call.retrievers), 1024, 0, call.stream>>>(call);
  return cudaGetLastError();
}

cudaError_t launch_query_gradient(const train_call& call) noexcept {
  const unsigned grid = blocks(call.retrievers * call.windows * call.true_heads, warps);
  return by_operand(call, [&](auto zero) {
    query_gradient_kernel<decltype(zero)><<<grid, threads, 0, call.stream>>>(call);
  });
}

cudaError_t launch_key_gradient(const train_call& call, std::int64_t chunk, std::int64_t count) noexcept {
  const std::int64_t groups = (count + chunks_per_warp - 1) / chunks_per_warp;
  const unsigned join = blocks(call.retrievers * groups * call.true_windows, warps);
  const unsigned collect = blocks(call.retrievers * count * call.keys_per_chunk, warps);
  return by_operand(call, [&](auto zero) {
    using operand = decltype(zero);
    join_heads_kernel<operand><<<join, threads, 0, call.stream>>>(call, chunk, count);
    collect_windows_kernel<operand><<<collect, threads, 0, call.stream>>>(call, chunk, count);
  });
}

cudaError_t launch_clear_key_tail(const train_call& call) noexcept {
  if (call.keys == call.chunks * call.keys_per_chunk) return cudaSuccess;
  return by_operand(call, [&](auto zero) {
    clear_key_tail_kernel<decltype(zero)><<<unsigned(call.retrievers), threads, 0, call.stream>>>(call);
  });
}

cudaError_t launch_map_gradient(const train_call& call) noexcept {
  const dim3 grid(blocks(call.hidden, 32), unsigned(call.retrievers));
  map_gradient_kernel<<<grid, threads, 0, call.stream>>>(call);
  return cudaGetLastError();
}

cudaError_t launch_norm_gradient(const train_call& call) noexcept {
  const dim3 grid(unsigned(call.windows), unsigned(call.retrievers));
  const dim3 weights(blocks(call.true_rank, 128), unsigned(call.retrievers));
  return by_operand(call, [&](auto zero) {
    norm_gradient_kernel<decltype(zero)><<<grid, threads, 0, call.stream>>>(call);
    norm_weight_kernel<<<weights, 128, 0, call.stream>>>(call);
  });
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
