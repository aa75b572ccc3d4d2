// SPDX-License-Identifier: MIT
// Decode steps of an engine that keeps its own pages, and their attention in double arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <flashmemory/attend/page_strides.hpp>
#include <iostream>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace engine {

inline std::uint32_t fresh_seed() {
  if (const char* fixed = std::getenv("FLASHMEMORY_TEST_SEED"))
    return static_cast<std::uint32_t>(std::stoul(fixed));
  return std::random_device()();
}

/// How K or V of an entry and head are stored.
enum class format { f32, bf16, f16, int8_entry_scale, e4m3_head_scale, q8_0 };

inline int entry_bytes(format f, int dim) {
  switch (f) {
    case format::f32:
      return 4 * dim;
    case format::bf16:
    case format::f16:
      return 2 * dim;
    case format::q8_0:
      return dim / 32 * 34;
    default:
      return dim;
  }
}

inline double of_f16(std::uint16_t bits) {  // normal ones
  const double x = std::ldexp(1 + (bits & 1023) / 1024.0, (bits >> 10 & 31) - 15);
  return bits & 0x8000 ? -x : x;
}
inline double of_e4m3(std::uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double x = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -x : x;
}

struct problem {
  // What an engine would have.
  int rows = 1, query_tokens = 1, query_heads = 1, kv_heads = 1, key_dim = 64, value_dim = 64;
  int entries_per_page = 16, max_pages = 1;
  bool nhd = true;
  format keys_format = format::f32, values_format = format::f32;
  std::vector<std::byte> key_pool, value_pool;
  flashmemory::page_strides key_strides, value_strides;
  std::vector<std::int32_t> table, firsts, lengths;  // [rows, max_pages] twice, [rows]
  std::vector<float> key_scales, value_scales;       // [pages, entries, kv_heads], or [kv_heads]
  std::vector<float> slopes, sinks;                  // [query_heads], or empty
  std::vector<std::uint8_t> mask;                    // [rows, query_tokens, positions], or empty
  int positions = 0;
  float scale = 1, soft_cap = 0;
  std::vector<float> q;  // [rows * query_tokens, query_heads, key_dim]
  bool q_is_bf16 = false;

  // The same K and V as numbers, [pages, entries, kv_heads, dim], and the answer.
  std::vector<double> keys, values, out, lse;
  double largest_value = 0;

  explicit problem(std::uint32_t seed) : random(seed) {}
  std::mt19937 random;

  int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
  float normal() { return std::normal_distribution<float>()(random); }
  int group() const { return query_heads / kv_heads; }

  /// Odd sizes, pages in any order, some of a sequence's pages left out.
  void make() {
    const int pages = rows * max_pages + 3;
    std::vector<std::int32_t> free(pages);
    for (int i = 0; i < pages; ++i) free[i] = i;
    std::shuffle(free.begin(), free.end(), random);
    table.assign(std::size_t(rows) * max_pages, 0);
    firsts.assign(table.size(), 0);
    lengths.resize(rows);
    for (int r = 0; r < rows; ++r) {
      lengths[r] = r == 1 ? 0 : uniform(query_tokens, max_pages * entries_per_page);
      const int used = (lengths[r] + entries_per_page - 1) / entries_per_page;
      int logical = 0;
      for (int i = 0; i < max_pages; ++i) {
        table[r * max_pages + i] = free.back();
        free.pop_back();
        firsts[r * max_pages + i] = logical * entries_per_page;
        // The newest tokens are always there, and the last two pages hold them.
        logical += i + 2 == used || uniform(0, 3) != 0 ? 1 : uniform(2, 5);
      }
      positions = std::max(positions, (logical + 1) * entries_per_page);
    }
    fill(keys_format, key_dim, pages, key_pool, key_strides, key_scales, keys);
    fill(values_format, value_dim, pages, value_pool, value_strides, value_scales, values);
    for (const double v : values) largest_value = std::max(largest_value, std::abs(v));
    q.resize(std::size_t(rows) * query_tokens * query_heads * key_dim);
    for (float& x : q) {
      x = normal();
      if (q_is_bf16) x = rounded_bf16(x);
    }
    double size = 0;
    for (const double k : keys) size += k * k;
    scale = static_cast<float>(2 / std::sqrt(key_dim * size / double(keys.size())));
  }

  void attend() {
    const std::size_t tokens = std::size_t(rows) * query_tokens;
    out.assign(tokens * query_heads * value_dim, 0);
    lse.assign(tokens * query_heads, -std::numeric_limits<double>::infinity());
    for (int r = 0; r < rows; ++r)
      for (int t = 0; t < query_tokens; ++t)
        for (int h = 0; h < query_heads; ++h) attend_row(r, t, h);
  }

  /// Throws if what a kernel has written is not the answer; weights are exact up to `tolerance`.
  void check(const std::vector<float>& got, const std::vector<float>& got_lse, double tolerance,
             const char* what) const {
    const auto fail = [&](const char* part, std::size_t i, double wanted, double found) {
      throw std::runtime_error(std::string(what) + ": " + part + "[" + std::to_string(i) + "] is " +
                               std::to_string(found) + " instead of " + std::to_string(wanted));
    };
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!(std::abs(got[i] - out[i]) <= tolerance * largest_value)) fail("out", i, out[i], got[i]);
    for (std::size_t i = 0; i < lse.size(); ++i)
      if (lse[i] != got_lse[i] && !(std::abs(got_lse[i] - lse[i]) <= tolerance * (1 + std::abs(lse[i]))))
        fail("lse", i, lse[i], got_lse[i]);
  }

  static float rounded_bf16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits &= 0xffff0000u;
    std::memcpy(&x, &bits, 4);
    return x;
  }

 private:
  void fill(format f, int dim, int pages, std::vector<std::byte>& pool, flashmemory::page_strides& strides,
            std::vector<float>& scales, std::vector<double>& numbers) {
    const int bytes = entry_bytes(f, dim);
    strides = nhd ? flashmemory::nhd_strides(entries_per_page, kv_heads, bytes)
                  : flashmemory::hnd_strides(entries_per_page, kv_heads, bytes);
    pool.assign(std::size_t(pages) * strides.page, std::byte{0xff});
    numbers.resize(std::size_t(pages) * entries_per_page * kv_heads * dim);
    if (f == format::int8_entry_scale) scales.resize(std::size_t(pages) * entries_per_page * kv_heads);
    if (f == format::e4m3_head_scale) scales.resize(kv_heads);
    for (float& s : scales) s = std::ldexp(1.0f + 0.01f * float(uniform(0, 99)), uniform(-8, -6));
    for (int p = 0; p < pages; ++p)
      for (int e = 0; e < entries_per_page; ++e)
        for (int h = 0; h < kv_heads; ++h) {
          std::byte* const to = pool.data() + p * strides.page + e * strides.entry + h * strides.head;
          const std::size_t slot = (std::size_t(p) * entries_per_page + e) * kv_heads + h;
          for (int d = 0; d < dim; ++d) numbers[slot * dim + d] = put(f, to, d, scales, slot, h);
        }
  }

  double put(format f, std::byte* to, int d, const std::vector<float>& scales, std::size_t slot, int head) {
    const auto code = std::uint8_t(uniform(0, 255));
    switch (f) {
      case format::f32: {
        const float x = normal();
        std::memcpy(to + 4 * d, &x, 4);
        return x;
      }
      case format::bf16: {
        const float x = rounded_bf16(normal());
        std::memcpy(to + 2 * d, reinterpret_cast<const char*>(&x) + 2, 2);
        return x;
      }
      case format::f16: {
        const auto bits = std::uint16_t(uniform(0, 1) << 15 | uniform(10, 15) << 10 | uniform(0, 1023));
        std::memcpy(to + 2 * d, &bits, 2);
        return of_f16(bits);
      }
      case format::int8_entry_scale:
        to[d] = std::byte(code);
        return double(std::int8_t(code)) * scales[slot];
      case format::e4m3_head_scale: {
        const auto finite = std::uint8_t((code & 0x7f) == 0x7f ? code - 1 : code);
        to[d] = std::byte(finite);
        return of_e4m3(finite) * scales[head];
      }
      case format::q8_0: {
        std::byte* const block = to + d / 32 * 34;
        std::uint16_t bits;
        if (d % 32 == 0) {
          bits = std::uint16_t(uniform(7, 9) << 10 | uniform(0, 1023));
          std::memcpy(block, &bits, 2);
        }
        std::memcpy(&bits, block, 2);
        block[2 + d % 32] = std::byte(code);
        return of_f16(bits) * double(std::int8_t(code));
      }
    }
    return 0;
  }

  void attend_row(int r, int t, int h) {
    const int visible = lengths[r] - (query_tokens - 1 - t), kv = h / group();
    const std::size_t token = std::size_t(r) * query_tokens + t;
    const auto position = [&](int e) {
      return firsts[r * max_pages + e / entries_per_page] + e % entries_per_page;
    };
    const auto slot = [&](int e) {
      return (std::size_t(table[r * max_pages + e / entries_per_page]) * entries_per_page +
              e % entries_per_page) *
                 kv_heads +
             kv;
    };
    std::vector<double> logits;
    double top = sinks.empty() ? -std::numeric_limits<double>::infinity() : sinks[h];
    for (int e = 0; e < visible; ++e) {
      double logit = 0;
      for (int d = 0; d < key_dim; ++d)
        logit += double(q[(token * query_heads + h) * key_dim + d]) * keys[slot(e) * key_dim + d];
      logit *= scale;
      if (soft_cap > 0) logit = soft_cap * std::tanh(logit / soft_cap);
      if (!slopes.empty()) logit += slopes[h] * double(position(e) - position(visible - 1));
      if (!mask.empty() && mask[token * positions + position(e)] == 0)
        logit = -std::numeric_limits<double>::infinity();
      logits.push_back(logit);
      top = std::max(top, logit);
    }
    if (top == -std::numeric_limits<double>::infinity()) return;
    double sum = sinks.empty() ? 0 : std::exp(sinks[h] - top);
    double* const to = out.data() + (token * query_heads + h) * value_dim;
    for (int e = 0; e < visible; ++e) {
      const double weight = std::exp(logits[e] - top);
      sum += weight;
      for (int d = 0; d < value_dim; ++d) to[d] += weight * values[slot(e) * value_dim + d];
    }
    for (int d = 0; d < value_dim; ++d) to[d] /= sum;
    lse[token * query_heads + h] = top + std::log(sum);
  }
};

/// Sizes that fit nothing.
inline problem odd_problem(std::uint32_t seed, bool nhd) {
  problem p(seed);
  p.nhd = nhd;
  p.rows = p.uniform(1, 4);
  p.query_tokens = p.uniform(1, 3);
  p.kv_heads = p.uniform(1, 3);
  p.query_heads = p.kv_heads * p.uniform(1, 9);
  p.key_dim = 32 * p.uniform(1, 8);
  p.value_dim = 32 * p.uniform(1, 8);
  p.entries_per_page = 3 + p.uniform(0, 60);
  p.max_pages = p.uniform(1, 13);
  return p;
}
inline void add_slopes(problem& p) {
  for (int h = 0; h < p.query_heads; ++h)
    p.slopes.push_back(std::exp2(-8.0f * float(h + 1) / float(p.query_heads)));
}
inline void add_sinks(problem& p) {
  for (int h = 0; h < p.query_heads; ++h) p.sinks.push_back(p.normal());
}
inline void add_mask(problem& p) {  // after make()
  p.mask.resize(std::size_t(p.rows) * p.query_tokens * p.positions);
  for (auto& seen : p.mask) seen = p.uniform(0, 2) != 0;
}

/// Runs each test with fresh seeds; the seed that failed is part of the error.
template <class Test>
void with_fresh_seeds(int count, const Test& test) {
  for (int i = 0; i < count; ++i) {
    const std::uint32_t seed = fresh_seed();
    try {
      test(seed);
    } catch (const std::exception& e) {
      throw std::runtime_error(std::string(e.what()) + " (FLASHMEMORY_TEST_SEED=" + std::to_string(seed) +
                               ")");
    }
  }
}

}  // namespace engine
