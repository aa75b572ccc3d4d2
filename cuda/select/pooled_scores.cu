// SPDX-License-Identifier: MIT
#include <cuda_fp8.h>

#include <algorithm>

#include "cuda/core/convert.cuh"
#include "cuda/core/key_page.cuh"
#include "cuda/select/pooled_keys.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 256;
constexpr int tile = 64;   // rows and keys of a block
constexpr int slice = 32;  // of the dim, in shared memory at a time
constexpr int pad = 4;     // floats behind a row of a slice, so that rows begin in different banks
constexpr int piece = 4;   // rows and keys of a thread

constexpr float infinity = __builtin_huge_valf();
constexpr float largest_float = 3.402823466e38f;

__device__ __forceinline__ float no_number() { return __uint_as_float(0x7fc00000u); }

struct key_place {
  const std::uint8_t* values;
  const std::uint8_t* scales;
};

__device__ __forceinline__ key_place place_of(const std::byte* pages, std::int64_t key,
                                              const key_page& page) {
  const std::int64_t which = key / page.page_keys;
  auto* const base = const_cast<std::byte*>(pages) + which * page.page_keys * page.key_bytes();
  const auto in_page = static_cast<std::int32_t>(key - which * page.page_keys);
  return {reinterpret_cast<const std::uint8_t*>(key_values(base, in_page, page)),
          reinterpret_cast<const std::uint8_t*>(key_scales(base, in_page, page))};
}

__device__ __forceinline__ std::uint16_t pair_at(const std::uint8_t* at) {
  return static_cast<std::uint16_t>(at[0] | at[1] << 8);
}

/// A key's f32 scale, 1 where its type has none of that kind.
__device__ __forceinline__ float scale_of(const key_place& key, const key_page& page) {
  if (page.type != index_key_type::e4m3 && page.type != index_key_type::int8) return 1;
  const std::uint32_t bits = std::uint32_t{pair_at(key.scales)} | std::uint32_t{pair_at(key.scales + 2)}
                                                                      << 16;
  const float scale = __uint_as_float(bits);
  return fabsf(scale) <= largest_float ? scale : no_number();
}

/// Element i of a key, without its f32 scale.
__device__ __forceinline__ float value_at(const key_place& key, int i, index_key_type type) {
  switch (type) {
    case index_key_type::e4m3:
      return __half2float(__half(__nv_cvt_fp8_to_halfraw(key.values[i], __NV_E4M3)));
    case index_key_type::int8:
      return static_cast<float>(static_cast<std::int8_t>(key.values[i]));
    case index_key_type::bf16:
      return __uint_as_float(std::uint32_t{pair_at(key.values + 2 * i)} << 16);
    case index_key_type::f16:
      return __half2float(__ushort_as_half(pair_at(key.values + 2 * i)));
    case index_key_type::mxfp4: {
      const unsigned code = key.values[i / 2] >> (i % 2 * 4) & 15u, exponent = key.scales[i / 32];
      // 0, 1/2, then 1, 3/2 times a power of two: the code's own bits as those of a float, rescaled.
      const float magnitude = __uint_as_float((code & 7u) << 22) * 0x1p126f;
      const float unit =
          exponent == 0xff ? no_number() : __uint_as_float(exponent == 0 ? 0x00400000u : exponent << 23);
      return ((code & 8u) != 0 ? -magnitude : magnitude) * unit;
    }
  }
  return 0;
}

/// One row of one sequence: its query head, projected and with the softmax's scale in it.
__global__ void __launch_bounds__(128)
    queries_kernel(const pooled_problem problem, std::int32_t tap, const void* queries, dtype type,
                   std::int64_t row_stride) {
  const pooled_row row = problem.rows[blockIdx.x];
  if (row.tap != tap) return;
  const float* const projection = problem.lanes[row.lane].projection;
  const std::int64_t from = blockIdx.y * row_stride + row.at;
  float* const out =
      problem.queries + (std::int64_t{blockIdx.y} * problem.row_count + blockIdx.x) * problem.dim;
  for (int d = static_cast<int>(threadIdx.x); d < problem.dim; d += 128) {
    float value = 0;
    if (projection == nullptr)
      value = load_element(queries, type, from + d);
    else
      for (int i = 0; i < problem.key_dim; ++i)
        value =
            fmaf(projection[std::int64_t{i} * problem.dim + d], load_element(queries, type, from + i), value);
    out[d] = value * problem.scale;
  }
}

struct product_tile {
  float queries[tile][slice + pad];
  float keys[tile][slice + pad];
  float products[tile][tile + 1];
  float scales[tile];
  float largest[tile], sum[tile];  // of a chunk that several tiles make
};

/// Adds `count` products to a sum of exponentials. NaN where one of them is NaN or +Inf.
__device__ __forceinline__ void add_exponentials(const float* x, int count, float& largest, float& sum) {
  float most = largest;
  bool bad = isnan(sum);
  for (int i = 0; i < count; ++i) {
    bad = bad || !(x[i] <= largest_float);
    most = fmaxf(most, x[i]);
  }
  if (bad) {
    sum = no_number();
    return;
  }
  if (most == -infinity) return;
  float total = 0;
  for (int i = 0; i < count; ++i) total += expf(x[i] - most);
  sum = (sum > 0 ? sum * expf(largest - most) : 0) + total;
  largest = most;
}

__device__ __forceinline__ float log_of_sum(float largest, float sum) {
  return sum > 0 ? largest + logf(sum) : isnan(sum) ? sum : -infinity;
}

/// Up to `tile` rows of a lane against the keys of a chunk, or of as many as fit a tile: log of the sum of exponentials of
/// each row and chunk, whatever else is in the block. grid: (chunk groups, lanes x row tiles, sequences).
__global__ void __launch_bounds__(threads)
    chunk_logits_kernel(const pooled_problem problem, const pooled_job* jobs, const std::byte* const* keys,
                        std::int32_t row_tiles, std::int32_t group) {
  __shared__ product_tile shared;
  const std::int64_t chunks = jobs[blockIdx.z].chunks, first_chunk = std::int64_t{blockIdx.x} * group;
  const int lane_at = static_cast<int>(blockIdx.y) / row_tiles;
  const pooled_lane lane = problem.lanes[lane_at];
  const int first_row = static_cast<int>(blockIdx.y) % row_tiles * tile;
  if (first_chunk >= chunks || first_row >= lane.rows) return;
  const int rows = min(tile, lane.rows - first_row);
  const int here = static_cast<int>(min(static_cast<std::int64_t>(group), chunks - first_chunk));
  const int page_keys = problem.page.page_keys, wanted = here * page_keys, dim = problem.dim;
  const std::byte* const pages = keys[std::int64_t{blockIdx.z} * problem.lane_count + lane_at];
  const std::int64_t row0 = std::int64_t{blockIdx.z} * problem.row_count + lane.first_row + first_row;
  const float* const queries = problem.queries + row0 * dim;
  float* const out = problem.masses + row0 * problem.stride + first_chunk;
  const int thread = static_cast<int>(threadIdx.x);
  const int my_row = thread / (tile / piece) * piece, my_key = thread % (tile / piece) * piece;
  for (int r = thread; r < tile; r += threads) {
    shared.largest[r] = -infinity;
    shared.sum[r] = 0;
  }
  for (int from = 0; from < wanted; from += tile) {
    const int count = min(tile, wanted - from);
    const std::int64_t first_key = first_chunk * page_keys + from;
    __syncthreads();
    for (int k = thread; k < tile; k += threads)
      shared.scales[k] = k < count ? scale_of(place_of(pages, first_key + k, problem.page), problem.page) : 0;
    float sums[piece][piece] = {};
    for (int base = 0; base < dim; base += slice) {
      const int depth = min(slice, dim - base);
      __syncthreads();
      for (int i = thread; i < tile * slice; i += threads) {
        const int r = i / slice, d = i % slice;
        shared.queries[r][d] = r < rows && d < depth ? queries[std::int64_t{r} * dim + base + d] : 0;
        shared.keys[r][d] = r < count && d < depth ? value_at(place_of(pages, first_key + r, problem.page),
                                                              base + d, problem.page.type)
                                                   : 0;
      }
      __syncthreads();
      for (int d = 0; d < slice; ++d) {
        float q[piece], k[piece];
#pragma unroll
        for (int i = 0; i < piece; ++i) {
          q[i] = shared.queries[my_row + i][d];
          k[i] = shared.keys[my_key + i][d];
        }
#pragma unroll
        for (int i = 0; i < piece; ++i)
#pragma unroll
          for (int j = 0; j < piece; ++j) sums[i][j] = fmaf(q[i], k[j], sums[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < piece; ++i)
#pragma unroll
      for (int j = 0; j < piece; ++j)
        shared.products[my_row + i][my_key + j] = sums[i][j] * shared.scales[my_key + j];
    __syncthreads();
    if (group == 1) {
      for (int r = thread; r < rows; r += threads)
        add_exponentials(shared.products[r], count, shared.largest[r], shared.sum[r]);
      continue;
    }
    for (int i = thread; i < rows * here; i += threads) {
      const int r = i % rows, c = i / rows;
      float largest = -infinity, sum = 0;
      add_exponentials(shared.products[r] + c * page_keys, page_keys, largest, sum);
      out[r * problem.stride + c] = log_of_sum(largest, sum);
    }
  }
  if (group > 1) return;
  __syncthreads();
  for (int r = thread; r < rows; r += threads)
    out[r * problem.stride] = log_of_sum(shared.largest[r], shared.sum[r]);
}

struct counted {
  std::int64_t begin, end;
  __device__ __forceinline__ counted(const pooled_problem& problem, std::int64_t chunks)
      : begin(problem.uncounted_sink_chunks), end(chunks - problem.uncounted_recent_chunks) {
    if (begin >= end) {
      begin = 0;
      end = chunks;
    }
  }
};

template <class F>
__device__ float joined(float value, float* shared, const F& join) {
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (int w = 1; w < threads / 32; ++w) value = join(value, shared[w]);
  return value;
}

/// One row of one sequence: logits -> masses relative to the largest that counts, and their sum. grid: (rows, sequences)
__global__ void __launch_bounds__(threads)
    row_masses_kernel(const pooled_problem problem, const pooled_job* jobs) {
  __shared__ float shared[threads / 32];
  const std::int64_t chunks = jobs[blockIdx.y].chunks;
  const std::int64_t row = std::int64_t{blockIdx.y} * problem.row_count + blockIdx.x;
  float* const x = problem.masses + row * problem.stride;
  const counted span(problem, chunks);
  float largest = -infinity;
  for (std::int64_t c = span.begin + threadIdx.x; c < span.end; c += threads)
    if (x[c] > largest) largest = x[c];
  largest = joined(largest, shared, [](float a, float b) { return fmaxf(a, b); });
  float total = 0;
  for (std::int64_t c = threadIdx.x; c < chunks; c += threads) {
    const float mass = largest == -infinity || isnan(x[c]) ? no_number() : expf(fminf(x[c] - largest, 80.0f));
    x[c] = mass;
    if (c >= span.begin && c < span.end && !isnan(mass)) total += mass;
  }
  total = joined(total, shared, [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) problem.totals[row] = largest == -infinity ? no_number() : total;
}

/// A thread per chunk: the largest mass over the rows of each token, the root of their mean square, its log-odds.
__global__ void __launch_bounds__(threads) fold_kernel(const pooled_problem problem, const pooled_job* jobs) {
  const pooled_job job = jobs[blockIdx.y];
  const std::int64_t c = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (c >= job.chunks) return;
  const counted span(problem, job.chunks);
  const bool counts = c >= span.begin && c < span.end;
  double squares = 0;
  for (int t = 0; t < problem.tokens; ++t) {
    float best = 0;
    for (int l = 0; l < problem.lane_count; ++l) {
      const pooled_lane lane = problem.lanes[l];
      const int heads = lane.rows / problem.tokens;
      for (int h = 0; h < heads; ++h) {
        const std::int64_t row =
            std::int64_t{blockIdx.y} * problem.row_count + lane.first_row + t * heads + h;
        const float mass = problem.masses[row * problem.stride + c], total = problem.totals[row];
        const float share = mass / (counts ? total : total + mass);
        best = isnan(best) || isnan(share) ? no_number() : fmaxf(best, share);
      }
    }
    squares += static_cast<double>(best) * static_cast<double>(best);
  }
  const double mass = sqrt(squares / problem.tokens);
  if (isnan(mass)) {
    job.scores[c] = no_number();
    return;
  }
  // As mass_log_odds() of src/indexer/pooled_keys.cpp.
  const double p = fmin(fmax(mass, 0x1p-149), 1 - 0x1p-24);
  job.scores[c] = static_cast<float>(log(p) - log1p(-p));
}

}  // namespace

cudaError_t launch_pooled_queries(const pooled_problem& problem, std::int32_t tap, const void* queries,
                                  dtype type, std::int64_t row_stride, std::int32_t count,
                                  cudaStream_t stream) noexcept {
  queries_kernel<<<dim3(static_cast<unsigned>(problem.row_count), static_cast<unsigned>(count)), 128, 0,
                   stream>>>(problem, tap, queries, type, row_stride);
  return cudaGetLastError();
}

cudaError_t launch_pooled_scores(const pooled_problem& problem, const pooled_job* jobs,
                                 const std::byte* const* keys, std::int32_t count, std::int64_t most_chunks,
                                 cudaStream_t stream) noexcept {
  const std::int32_t row_tiles = (problem.most_rows + tile - 1) / tile;
  const std::int32_t group = std::max(1, tile / problem.page.page_keys);
  const auto sequences = static_cast<unsigned>(count);
  chunk_logits_kernel<<<dim3(static_cast<unsigned>((most_chunks + group - 1) / group),
                             static_cast<unsigned>(problem.lane_count * row_tiles), sequences),
                        threads, 0, stream>>>(problem, jobs, keys, row_tiles, group);
  if (const cudaError_t code = cudaGetLastError(); code != cudaSuccess) return code;
  row_masses_kernel<<<dim3(static_cast<unsigned>(problem.row_count), sequences), threads, 0, stream>>>(
      problem, jobs);
  if (const cudaError_t code = cudaGetLastError(); code != cudaSuccess) return code;
  fold_kernel<<<dim3(static_cast<unsigned>((most_chunks + threads - 1) / threads), sequences), threads, 0,
                stream>>>(problem, jobs);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
