// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/cuda/attend.hpp>
#include <numeric>
#include <random>
#include <vector>

#include "src/core/convert.hpp"
#include "tests/cuda/gpu.hpp"
#include "tests/reference/attention.hpp"

namespace flashmemory_test {

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;

inline void store_as(fm::dtype type, std::byte* to, float x) {
  if (type == fm::dtype::f32) {
    std::memcpy(to, &x, 4);
  } else if (type == fm::dtype::bf16) {
    fm::bfloat16 y;
    fm::detail::from_float(x, y);
    std::memcpy(to, &y, 2);
  } else {
    fm::float16 y;
    fm::detail::from_float(x, y);
    std::memcpy(to, &y, 2);
  }
}

inline float load_as(fm::dtype type, const std::byte* from) {
  float x = 0;
  fm::bfloat16 b;
  fm::float16 h;
  if (type == fm::dtype::f32) return std::memcpy(&x, from, 4), x;
  if (type == fm::dtype::bf16) return std::memcpy(&b, from, 2), fm::detail::to_float(b);
  return std::memcpy(&h, from, 2), fm::detail::to_float(h);
}

/// Rows of a step with random K, V and queries: what the kernels read, in device memory, and the same numbers on
/// the host. Slots lie in random order in one pool; what no entry fills is NaN.
struct attend_problem {
  cu::attend_shape shape;
  std::int32_t layer = 0;
  std::vector<std::int64_t> entries;  ///< of each row
  float scale = 0, soft_cap = 0;
  bool with_sinks = false;
  float spread = 1;  ///< standard deviation of K
  fm::dtype out_type = fm::dtype::f32;

  std::mt19937 random;
  std::vector<std::vector<float>> keys, values;  ///< per row [entries, kv_heads, dim], as stored
  std::vector<float> queries, sinks;

  device_array<std::byte> pool;
  std::vector<device_array<const std::byte*>> tables;
  device_array<cu::chunk_row> rows;
  device_array<std::byte> q, out, scratch;
  device_array<std::uint32_t> counters{std::vector<std::uint32_t>(cu::attend_counters, 0)};
  device_array<float> lse, device_sinks;

  explicit attend_problem(std::uint32_t seed) : random(seed) {}

  std::int64_t num_rows() const { return std::int64_t(entries.size()); }
  std::int64_t tokens() const { return num_rows() * shape.query_tokens; }
  const fm::kv_geometry& geometry() const { return shape.geometry; }

  float rounded(float x) const {
    std::byte bytes[4];
    store_as(geometry().type, bytes, x);
    return load_as(geometry().type, bytes);
  }
  std::vector<float> noise(std::int64_t count, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& value : x) value = rounded(normal(random));
    return x;
  }

  /// Draws the numbers; place() puts them on the device.
  void draw() {
    const auto& g = geometry();
    keys.clear();
    values.clear();
    for (const std::int64_t n : entries) {
      keys.push_back(noise(n * g.kv_heads * g.key_dim, spread));
      values.push_back(noise(n * g.kv_heads * g.value_dim, 1));
    }
    queries = noise(tokens() * shape.query_heads * g.key_dim, 1);
    sinks.resize(std::size_t(shape.query_heads));
    std::normal_distribution<float> normal(0, 3);
    for (float& s : sinks) s = normal(random);
  }

  /// Lays the chunks out at places that depend on `order`.
  void place(std::uint32_t order) {
    const auto& g = geometry();
    const fm::chunk_layout layout(g);
    std::int64_t chunks = 0;
    for (const std::int64_t n : entries) chunks += g.chunks_for(n);
    std::vector<std::int64_t> slots(std::size_t(chunks + 7));
    std::iota(slots.begin(), slots.end(), 0);
    std::mt19937 shuffle(order);
    std::shuffle(slots.begin(), slots.end(), shuffle);
    std::vector<std::byte> host(slots.size() * layout.chunk_bytes(), std::byte{0xff});
    pool = device_array<std::byte>(host.size());
    tables.clear();
    std::vector<cu::chunk_row> row_table;
    std::size_t next = 0;
    for (std::size_t r = 0; r < entries.size(); ++r) {
      std::vector<const std::byte*> table;
      for (std::int64_t c = 0; c < g.chunks_for(entries[r]); ++c) {
        const std::size_t at = std::size_t(slots[next++]) * layout.chunk_bytes();
        table.push_back(pool.data() + at);
        const std::int64_t there =
            std::min<std::int64_t>(g.entries_per_chunk, entries[r] - c * g.entries_per_chunk);
        for (std::int64_t e = 0; e < there; ++e)
          for (std::int32_t h = 0; h < g.kv_heads; ++h) {
            const std::int64_t entry = (c * g.entries_per_chunk + e) * g.kv_heads + h;
            for (std::int32_t d = 0; d < g.key_dim; ++d)
              store_as(g.type,
                       host.data() + at + layout.key_offset(layer, h) +
                           std::size_t(e * g.key_dim + d) * fm::size_of(g.type),
                       keys[r][std::size_t(entry * g.key_dim + d)]);
            for (std::int32_t d = 0; d < g.value_dim; ++d)
              store_as(g.type,
                       host.data() + at + layout.value_offset(layer, h) +
                           std::size_t(e * g.value_dim + d) * fm::size_of(g.type),
                       values[r][std::size_t(entry * g.value_dim + d)]);
          }
      }
      tables.emplace_back(table);
      row_table.push_back({tables.back().data(), entries[r]});
    }
    pool.put(host);
    rows = device_array<cu::chunk_row>(row_table);

    std::vector<std::byte> bytes(queries.size() * fm::size_of(g.type));
    for (std::size_t i = 0; i < queries.size(); ++i)
      store_as(g.type, bytes.data() + i * fm::size_of(g.type), queries[i]);
    q = device_array<std::byte>(bytes);
    device_sinks = device_array<float>(sinks);
    out = device_array<std::byte>(std::size_t(tokens() * shape.query_heads * g.value_dim) *
                                  fm::size_of(out_type));
    lse = device_array<float>(std::size_t(tokens() * shape.query_heads));
  }

  void make_scratch(const cu::attend_plan& plan) {
    scratch = device_array<std::byte>(cu::attend_workspace_bytes(plan));
  }

  fm::attend_options options() const {
    fm::attend_options o;
    o.softmax_scale = scale;
    o.logit_soft_cap = soft_cap;
    if (with_sinks) o.sink_logits = fm::view<const float, 1>(device_sinks.data(), shape.query_heads);
    o.lse = fm::view<float, 2>(lse.data(), tokens(), shape.query_heads);
    o.scratch = {scratch.data(), scratch.size()};
    o.counters = counters.data();
    return o;
  }
  fm::status run(const cu::attend_plan& plan, const device_stream& stream) const {
    const auto& g = geometry();
    return cu::sparse_attend(plan, fm::view<const cu::chunk_row, 1>(rows.data(), num_rows()), layer,
                             fm::const_tensor<3>(q.data(), g.type, tokens(), shape.query_heads, g.key_dim),
                             fm::tensor<3>(out.data(), out_type, tokens(), shape.query_heads, g.value_dim),
                             options(), stream.ref());
  }

  std::vector<float> outputs() const {
    const auto bytes = out.get();
    std::vector<float> x(bytes.size() / fm::size_of(out_type));
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = load_as(out_type, bytes.data() + i * fm::size_of(out_type));
    return x;
  }

  /// The reference for one query row.
  reference::attention_result expected(std::int64_t row, std::int32_t token, std::int32_t head) const {
    const auto& g = geometry();
    const std::int32_t kv_head = head / (shape.query_heads / g.kv_heads);
    const std::int64_t seen = entries[std::size_t(row)] - (shape.query_tokens - 1 - token);
    std::vector<reference::entry> list;
    for (std::int64_t e = 0; e < seen; ++e) {
      const auto k = keys[std::size_t(row)].begin() + (e * g.kv_heads + kv_head) * g.key_dim;
      const auto v = values[std::size_t(row)].begin() + (e * g.kv_heads + kv_head) * g.value_dim;
      list.push_back({{k, k + g.key_dim}, {v, v + g.value_dim}});
    }
    const auto from =
        queries.begin() + ((row * shape.query_tokens + token) * shape.query_heads + head) * g.key_dim;
    return reference::attention({from, from + g.key_dim}, list, g.value_dim,
                                scale > 0 ? double(scale) : 1 / std::sqrt(double(g.key_dim)), soft_cap,
                                with_sinks ? std::optional<double>(sinks[std::size_t(head)]) : std::nullopt);
  }
};

/// Largest error allowed of an output, as a share of the largest |v|: the weights' rounding to 8 bits in bf16 and 11 in f16,
/// 2^-8 and 2^-11 of each at most, and f32 sums. Few entries that weigh most come near that.
inline double tolerance_of(const cu::attend_plan& plan) {
  if (!plan.tensor_cores) return 2e-5;
  return (plan.shape.geometry.type == fm::dtype::bf16 ? 0x1p-8 : 0x1p-11) + 2e-5;
}

struct error_summary {
  double value = 0, lse = 0;
};

inline error_summary compare(const attend_problem& p) {
  const auto& g = p.geometry();
  const auto out = p.outputs();
  const auto lse = p.lse.get();
  error_summary worst;
  for (std::int64_t row = 0; row < p.num_rows(); ++row)
    for (std::int32_t t = 0; t < p.shape.query_tokens; ++t)
      for (std::int32_t h = 0; h < p.shape.query_heads; ++h) {
        const auto wanted = p.expected(row, t, h);
        const std::int64_t at = (row * p.shape.query_tokens + t) * p.shape.query_heads + h;
        CAPTURE(row, t, h, p.entries[std::size_t(row)]);
        if (std::isinf(wanted.lse)) {
          REQUIRE(lse[std::size_t(at)] == wanted.lse);
        } else {
          REQUIRE(std::isfinite(lse[std::size_t(at)]));
          worst.lse = std::max(
              worst.lse, std::abs(lse[std::size_t(at)] - wanted.lse) / std::max(1.0, std::abs(wanted.lse)));
        }
        double largest = 1e-3;
        for (const float v : p.values[std::size_t(row)]) largest = std::max(largest, double(std::abs(v)));
        for (std::int32_t d = 0; d < g.value_dim; ++d) {
          const float got = out[std::size_t(at * g.value_dim + d)];
          REQUIRE(std::isfinite(got));
          worst.value = std::max(worst.value, std::abs(got - wanted.out[std::size_t(d)]) / largest);
        }
      }
  return worst;
}

}  // namespace flashmemory_test
