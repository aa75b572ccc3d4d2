// SPDX-License-Identifier: MIT
#include "bench/naive.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace flashmemory_bench {
namespace {

float widen(flashmemory::bfloat16 value) {
  const std::uint32_t bits = std::uint32_t{value.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

struct job {
  const float* q;
  const flashmemory::bfloat16 *k, *v;
  std::int64_t query_heads, kv_heads, entries, dim;
  float *logits, *out;

  void head(std::int64_t h) const {
    const std::int64_t start = h / (query_heads / kv_heads) * entries * dim;
    const float* query = q + h * dim;
    float* p = logits + h * entries;
    float* sum = out + h * dim;
    const float scale = 1 / std::sqrt(float(dim));
    float max = -INFINITY;
    for (std::int64_t e = 0; e < entries; ++e) {
      float dot = 0;
      for (std::int64_t i = 0; i < dim; ++i) dot += query[i] * widen(k[start + e * dim + i]);
      p[e] = scale * dot;
      max = std::max(max, p[e]);
    }
    std::fill_n(sum, dim, 0.0f);
    float total = 0;
    for (std::int64_t e = 0; e < entries; ++e) {
      const float weight = std::exp(p[e] - max);
      total += weight;
      for (std::int64_t i = 0; i < dim; ++i) sum[i] += weight * widen(v[start + e * dim + i]);
    }
    for (std::int64_t i = 0; i < dim; ++i) sum[i] /= total;
  }
};

}  // namespace

void naive_attention(const float* q, const flashmemory::bfloat16* k, const flashmemory::bfloat16* v,
                     std::int64_t query_heads, std::int64_t kv_heads, std::int64_t entries, std::int64_t dim,
                     float* logits, float* out, const flashmemory::thread_hook& threads) {
  job j{q, k, v, query_heads, kv_heads, entries, dim, logits, out};
  const auto task = [](void* context, std::int32_t h) { static_cast<job*>(context)->head(h); };
  if (threads.run == nullptr) {
    for (std::int32_t h = 0; h < query_heads; ++h) task(&j, h);
  } else {
    threads.run(threads.context, std::int32_t(query_heads), task, &j);
  }
}

}  // namespace flashmemory_bench
