// SPDX-License-Identifier: MIT
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "content.hpp"

namespace replay {
namespace {

constexpr int threads = 256, warps = threads / 32;

void check_launch(const char* kernel) {
  const cudaError_t code = cudaGetLastError();
  if (code != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(code));
}

unsigned blocks_for(std::int64_t units, std::int64_t each) {
  return static_cast<unsigned>((units + each - 1) / each);
}

__device__ __forceinline__ std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Two numbers of one hash: sums of four bytes each, close enough to normal, with standard deviation 1.
__device__ __forceinline__ float2 noise2(std::uint64_t seed, std::uint64_t pair) {
  const std::uint64_t h = mixed(seed + pair * 0x632be59bd9b4e019ull);
  const auto low = static_cast<std::uint32_t>(h), high = static_cast<std::uint32_t>(h >> 32);
  const auto sum = [](std::uint32_t four) {
    return static_cast<float>(static_cast<int>(__dp4a(four, 0x01010101u, 0u)) - 510) * (1.0f / 147.8f);
  };
  return make_float2(sum(low), sum(high));
}

__device__ __forceinline__ std::uint16_t bf16_bits(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
__device__ __forceinline__ float rounded(float x) {
  return __uint_as_float(std::uint32_t{bf16_bits(x)} << 16);
}

__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  return bf16_bits(low) | std::uint32_t{bf16_bits(high)} << 16;
}

__device__ __forceinline__ std::uint32_t e4m3_of(float x) {
  return static_cast<std::uint32_t>(__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3));
}

__global__ void __launch_bounds__(threads)
    noise_kernel(std::uint32_t* out, std::int64_t pairs, std::uint64_t seed) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x; i < pairs;
       i += std::int64_t{gridDim.x} * threads) {
    const float2 x = noise2(seed, static_cast<std::uint64_t>(i));
    out[i] = pack(x.x, x.y);
  }
}

/// One index key, 4 values per lane: as bf16, and the same quantised as the store quantises keys.
__device__ __forceinline__ void write_key(const float (&x)[4], bfloat16* key, std::byte* row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  reinterpret_cast<uint2*>(key)[lane] = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
  if (row == nullptr) return;
  float values[4], largest = 1e-4f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = rounded(x[i]);
    largest = fmaxf(largest, fabsf(values[i]));
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
  const float scale = __fdiv_rn(largest, 448.0f);
  std::uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= e4m3_of(__fdiv_rn(values[i], scale)) << 8 * i;
  reinterpret_cast<std::uint32_t*>(row)[lane] = word;
  if (lane == 0) *reinterpret_cast<float*>(row + model::lightning_dim) = scale;
}

/// Noise of a warp's index key; with a direction it is 0.9 of that and 0.44 noise, so that its length stays.
__device__ __forceinline__ void make_key(std::uint64_t seed, std::uint64_t number, const float* direction,
                                         float (&x)[4]) {
  const auto lane = threadIdx.x % 32;
  const float2 a = noise2(seed, number * 64 + 2 * lane), b = noise2(seed, number * 64 + 2 * lane + 1);
  x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y;
  if (direction == nullptr) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = 0.9f * direction[lane * 4 + i] + 0.44f * x[i];
}

__global__ void __launch_bounds__(threads)
    index_key_kernel(bfloat16* keys, std::byte* rows, std::int64_t first, std::int64_t count,
                     std::int32_t layer, topic_rule rule, const std::int32_t* places, std::int32_t num_chunks,
                     planted_directions directions, std::uint64_t seed) {
  const std::int64_t at = std::int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (at >= count) return;
  const std::int64_t entry = first + at, chunk = entry / model::chunk_entries;
  const float* direction = nullptr;
  if (chunk < num_chunks) {
    const std::int32_t topic =
        rule.topic_of(places[chunk], static_cast<std::int32_t>(entry % model::chunk_entries));
    if (topic >= 0)
      direction =
          directions.values + (std::int64_t{layer} * directions.topics + topic) * model::lightning_dim;
  }
  float x[4];
  make_key(seed, static_cast<std::uint64_t>(entry), direction, x);
  write_key(x, keys + at * model::lightning_dim,
            rows != nullptr ? rows + at * (model::lightning_dim + 4) : nullptr);
}

__device__ __forceinline__ float2 topic_hidden(std::int32_t retriever, std::int32_t topic,
                                               std::uint64_t pair) {
  return noise2(0x70c1c00ull + static_cast<std::uint64_t>(retriever * 65536 + topic), pair);
}

__global__ void __launch_bounds__(threads)
    topic_hidden_kernel(std::uint32_t* out, std::int32_t retriever, std::int32_t first) {
  for (int i = static_cast<int>(threadIdx.x); i < model::hidden / 2; i += threads) {
    const float2 x =
        topic_hidden(retriever, first + static_cast<std::int32_t>(blockIdx.x), static_cast<unsigned>(i));
    out[std::int64_t{blockIdx.x} * (model::hidden / 2) + i] = pack(x.x, x.y);
  }
}

/// Grid: x rows, y CSA layers, then retrievers.
__global__ void __launch_bounds__(threads)
    step_kernel(step_tensors out, step_topics topics, planted_directions directions, std::uint64_t seed) {
  const auto row = static_cast<std::int32_t>(blockIdx.x), part = static_cast<std::int32_t>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  if (part >= model::csa_layers) {
    const std::int32_t r = part - model::csa_layers;
    auto* const to = reinterpret_cast<std::uint32_t*>(out.hidden) +
                     (std::int64_t{r} * topics.rows + row) * (model::hidden / 2);
    for (int i = thread; i < model::hidden / 2; i += threads) {
      const auto pair = static_cast<std::uint64_t>(i);
      const float2 x = topic_hidden(r, topics.hidden[row], pair);
      const float2 e =
          noise2(seed + 1, (static_cast<std::uint64_t>(r) * max_rows + row) * model::hidden + pair);
      to[i] = pack(x.x + 0.2f * e.x, x.y + 0.2f * e.y);
    }
    return;
  }
  const std::int32_t layer = part;
  const std::int64_t at = std::int64_t{layer} * topics.rows + row;
  const float* const direction =
      directions.values +
      (std::int64_t{layer} * directions.topics + topics.queries[row]) * model::lightning_dim;
  // Heads that look for the topic, each in its own way.
  constexpr int quads = model::index_heads * model::lightning_dim / 4;
  const auto number = static_cast<std::uint64_t>(layer) * max_rows + static_cast<std::uint64_t>(row);
  auto* const queries = reinterpret_cast<std::uint32_t*>(out.queries) + at * quads;
  for (int i = thread; i < quads; i += threads) {
    const int d = i % (model::lightning_dim / 4) * 4;
    const std::uint64_t pair = (number * quads + static_cast<std::uint64_t>(i)) * 2;
    const float2 a = noise2(seed + 2, pair), b = noise2(seed + 2, pair + 1);
    queries[i] = e4m3_of(0.5f * direction[d] + a.x) | e4m3_of(0.5f * direction[d + 1] + a.y) << 8 |
                 e4m3_of(0.5f * direction[d + 2] + b.x) << 16 | e4m3_of(0.5f * direction[d + 3] + b.y) << 24;
  }
  if (thread < model::index_heads)
    out.weights[at * model::index_heads + thread] =
        (0.5f + fabsf(noise2(seed + 3, number * 64 + static_cast<std::uint64_t>(thread)).x)) / 1024.0f;
  if (thread < 32) {
    float x[4];
    make_key(seed + 4, number, nullptr, x);
    const std::int32_t r = model::retriever_of(layer);
    std::byte* const rows =
        r >= 0 ? out.index_rows + (std::int64_t{r} * topics.rows + row) * (model::lightning_dim + 4)
               : nullptr;
    write_key(x, out.index_keys + at * model::lightning_dim, rows);
  }
}

__global__ void __launch_bounds__(threads) place_kernel(cache_places out, const std::int64_t* positions,
                                                        std::int32_t rows, std::int32_t hca_capacity) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * threads + threadIdx.x);
  if (i >= model::layers * rows) return;
  const std::int32_t layer = i / rows, row = i % rows;
  const std::int64_t position = positions[row];
  const bool empty = position < 0;
  out.window[i] = empty ? -1 : i * model::window + static_cast<std::int32_t>(position % model::window);
  const auto complete = static_cast<std::int32_t>(empty ? 0 : (position + 1) / model::hca_tokens);
  if (layer == 0) out.hca_counts[row] = complete;
  if (layer < model::hca_layers) {
    const bool now = !empty && (position + 1) % model::hca_tokens == 0;
    out.hca[i] = now ? i * hca_capacity + complete - 1 : -1;
  }
}

__global__ void __launch_bounds__(threads)
    iota_kernel(std::int32_t* out, std::int64_t count, std::int32_t first) {
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i < count) out[i] = first + static_cast<std::int32_t>(i);
}

}  // namespace

void fill_noise(bfloat16* out, std::int64_t count, std::uint64_t seed, cudaStream_t stream) {
  if (count == 0) return;
  const unsigned blocks = std::min(blocks_for(count / 2, threads), 4096u);
  noise_kernel<<<blocks, threads, 0, stream>>>(reinterpret_cast<std::uint32_t*>(out), count / 2, seed);
  check_launch("noise");
}

void fill_index_keys(bfloat16* keys, std::byte* rows, std::int64_t first, std::int64_t count,
                     std::int32_t layer, const topic_rule& rule, const std::int32_t* places,
                     std::int32_t num_chunks, const planted_directions& directions, std::uint64_t seed,
                     cudaStream_t stream) {
  if (count == 0) return;
  index_key_kernel<<<blocks_for(count, warps), threads, 0, stream>>>(keys, rows, first, count, layer, rule,
                                                                     places, num_chunks, directions, seed);
  check_launch("index_keys");
}

void fill_topic_hidden(bfloat16* out, std::int32_t retriever, std::int32_t first, std::int32_t topics,
                       cudaStream_t stream) {
  if (topics == 0) return;
  topic_hidden_kernel<<<static_cast<unsigned>(topics), threads, 0, stream>>>(
      reinterpret_cast<std::uint32_t*>(out), retriever, first);
  check_launch("topic_hidden");
}

void fill_step(const step_tensors& out, const step_topics& topics, const planted_directions& directions,
               std::uint64_t seed, cudaStream_t stream) {
  if (topics.rows == 0) return;
  const dim3 grid(static_cast<unsigned>(topics.rows), model::csa_layers + model::retrievers);
  step_kernel<<<grid, threads, 0, stream>>>(out, topics, directions, seed);
  check_launch("step");
}

void place_step(const cache_places& out, const std::int64_t* positions, std::int32_t rows,
                std::int32_t hca_capacity, cudaStream_t stream) {
  if (rows == 0) return;
  place_kernel<<<blocks_for(model::layers * rows, threads), threads, 0, stream>>>(out, positions, rows,
                                                                                  hca_capacity);
  check_launch("place");
}

void fill_iota(std::int32_t* out, std::int64_t count, std::int32_t first, cudaStream_t stream) {
  if (count == 0) return;
  iota_kernel<<<blocks_for(count, threads), threads, 0, stream>>>(out, count, first);
  check_launch("iota");
}

}  // namespace replay
