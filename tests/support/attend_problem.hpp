// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <flashmemory/attend/sparse_attend.hpp>
#include <limits>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/reference/attention.hpp"
#include "tests/support/plain_store.hpp"

namespace flashmemory_test {

/// Relative rounding error of one stored element.
inline double rounding_of(dtype type) {
  return type == dtype::f32 ? 0x1p-24 : type == dtype::bf16 ? 0x1p-8 : 0x1p-11;
}

/// A random finite element with magnitude in [2^low, 2^(low + 3)), written as bits, without converting.
inline void random_element(std::mt19937_64& random, dtype type, int low, std::byte* to) {
  const std::uint64_t r = random();
  const auto exponent = std::uint32_t(int(r >> 40 & 3u) % 3 + low), sign = std::uint32_t(r >> 60 & 1u);
  if (type == dtype::f32) {
    const std::uint32_t bits = sign << 31 | (127 + exponent) << 23 | std::uint32_t(r & 0x7fffffu);
    std::memcpy(to, &bits, 4);
  } else {
    const auto bits = std::uint16_t(type == dtype::bf16 ? sign << 15 | (127 + exponent) << 7 | (r & 127u)
                                                        : sign << 15 | (15 + exponent) << 10 | (r & 1023u));
    std::memcpy(to, &bits, 2);
  }
}

/// Runs tasks on threads of its own, in whatever order they come.
struct thread_crowd {
  int threads = 4;

  thread_hook hook() {
    thread_hook h;
    h.context = this;
    h.concurrency = threads;
    h.run = [](void* self, std::int32_t count, void (*task)(void*, std::int32_t), void* context) {
      std::atomic<std::int32_t> next{count - 1};  // backwards: nobody may rely on the order
      std::vector<std::thread> crowd;
      for (int t = 0; t < static_cast<thread_crowd*>(self)->threads; ++t) {
        crowd.emplace_back([&] {
          for (std::int32_t i = next--; i >= 0; i = next--) task(context, i);
        });
      }
      for (std::thread& t : crowd) t.join();
    };
    return h;
  }
};

struct attend_shape {
  std::int32_t kv_heads = 2;
  std::int32_t group = 2;
  std::int32_t key_dim = 64;
  std::int32_t value_dim = 64;
  dtype type = dtype::bf16;
  std::int32_t entries_per_chunk = 16;
  std::int32_t tokens_per_entry = 1;
  dtype q_type = dtype::f32;
  int key_exponent = -1;  ///< of |K|, see random_element()

  kv_geometry geometry() const {
    kv_geometry g;
    g.layers = 2;
    g.kv_heads = kv_heads;
    g.key_dim = key_dim;
    g.value_dim = value_dim;
    g.type = type;
    g.entries_per_chunk = entries_per_chunk;
    g.tokens_per_entry = tokens_per_entry;
    return g;
  }
};

struct attend_output {
  status code = status::ok;
  std::vector<float> out;
  std::vector<float> lse;

  bool operator==(const attend_output& other) const {  // bit for bit
    return code == other.code && out.size() == other.out.size() && lse.size() == other.lse.size() &&
           std::memcmp(out.data(), other.out.data(), out.size() * 4) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * 4) == 0;
  }
};

/// Random sequences in a plain_store, random queries, the call and what the reference says about it.
struct attend_problem {
  attend_shape shape;
  std::int32_t query_heads;
  plain_store store;
  std::mt19937_64 random;
  std::vector<batch_item> items;
  std::vector<std::byte> q;
  std::vector<float> sinks;           ///< empty = none
  std::vector<std::int32_t> entries;  ///< [rows, list_length]; list_length 0 = no lists
  std::int64_t list_length = 0;
  attend_options options;
  std::int32_t layer = 1;

  attend_problem(const attend_shape& s, std::uint64_t seed)
      : shape(s), query_heads(s.kv_heads * s.group), store(s.geometry()), random(seed) {
    options.threads = serial_threads();
  }

  std::int64_t rows() const {
    std::int64_t n = 0;
    for (const auto& item : items) n += item.num_tokens;
    return n;
  }

  std::vector<std::byte> random_elements(dtype type, std::int64_t count, int low) {
    std::vector<std::byte> bytes(std::size_t(count) * size_of(type));
    for (std::int64_t i = 0; i < count; ++i) {
      random_element(random, type, low, bytes.data() + std::size_t(i) * size_of(type));
    }
    return bytes;
  }

  /// Adds a sequence of `length` tokens whose last `tokens` ones are queries.
  sequence_handle add(std::int64_t length, std::int32_t tokens) {
    const kv_geometry& g = store.geometry();
    sequence_options how;
    how.max_tokens = length;
    const sequence_handle handle = store.open(how);
    const std::int64_t count = g.entries_for(length);
    for (std::int32_t l = 0; l < g.layers; ++l) {
      const auto k = random_elements(g.type, count * g.kv_heads * g.key_dim, shape.key_exponent);
      const auto v = random_elements(g.type, count * g.kv_heads * g.value_dim, -2);
      const batch_item all{handle, 0, std::int32_t(length)};
      if (store.append(batch(&all, 1), l, const_tensor<3>(k.data(), g.type, count, g.kv_heads, g.key_dim),
                       const_tensor<3>(v.data(), g.type, count, g.kv_heads, g.value_dim),
                       stream_ref::host()) != status::ok) {
        throw error(status::bad_argument, "append");
      }
    }
    items.push_back({handle, length - tokens, tokens});
    const auto more = random_elements(shape.q_type, std::int64_t{tokens} * query_heads * g.key_dim, -2);
    q.insert(q.end(), more.begin(), more.end());
    store.move_chunks(handle, random());
    return handle;
  }

  /// Keeps a random part of the sequence's chunks, each with probability `share`.
  void drop_chunks(sequence_handle handle, double share) {
    sequence_info info;
    if (store.info(handle, &info) != status::ok) return;
    std::vector<chunk_id> kept;
    for (chunk_id c = 0; c < store.geometry().chunks_for(info.tokens); ++c) {
      if (std::uniform_real_distribution<>()(random) < share) kept.push_back(c);
    }
    store.set_resident(handle, kept);
  }

  const_tensor<3> q_tensor() const {
    return const_tensor<3>(q.data(), shape.q_type, rows(), query_heads, shape.key_dim);
  }

  bool is_prompt(const batch_item& item) const {
    return list_length == 0 && !item.empty() &&
           (item.num_tokens > most_decode_tokens || options.reach == attend_reach::everything);
  }

  /// Whether attention of `item` looks at a chunk.
  bool attends_to(const batch_item& item, chunk_id chunk) const {
    if (store.is_resident(item.sequence, chunk)) return true;
    const std::int64_t own = store.geometry().entries_for(item.position) / shape.entries_per_chunk;
    return is_prompt(item) && (options.reach == attend_reach::everything || chunk >= own);
  }

  /// Lends the options everything that the problem owns.
  attend_options full_options(std::vector<std::byte>& scratch) {
    std::int64_t chunks = 0, decode_rows = 0;
    prompt_extent prompts;
    prompts.items = 0;
    prompts.streamed =
        store.others == plain_store::elsewhere::addresses || store.others == plain_store::elsewhere::reads;
    prompts.concurrency = options.threads.concurrency;
    for (const auto& item : items) {
      (is_prompt(item) ? prompts.rows : decode_rows) += item.num_tokens;
      prompts.items += is_prompt(item);
      if (item.empty()) continue;
      resident_set set;
      if (store.resident(item.sequence, layer, &set) == status::ok) chunks = std::max(chunks, set.count);
    }
    scratch.resize(attend_workspace_bytes(store.geometry(), query_heads, decode_rows, chunks, prompts));
    attend_options o = options;
    o.scratch = {scratch.data(), scratch.size()};
    if (!sinks.empty()) o.sink_logits = view<const float, 1>(sinks.data(), sinks.size());
    if (list_length > 0) {
      o.entries = view<const std::int32_t, 2>(entries.data(), rows(), list_length);
    }
    return o;
  }

  attend_output run(dtype out_type = dtype::f32) {
    std::vector<std::byte> scratch;
    attend_options o = full_options(scratch);
    attend_output result;
    const std::int64_t count = rows() * query_heads * shape.value_dim;
    std::vector<std::byte> out(std::size_t(count) * size_of(out_type), std::byte{0x7f});
    result.lse.assign(std::size_t(rows() * query_heads), 77);
    o.lse = view<float, 2>(result.lse.data(), rows(), query_heads);
    result.code = sparse_attend(store, batch(items.data(), items.size()), layer, q_tensor(),
                                tensor<3>(out.data(), out_type, rows(), query_heads, shape.value_dim), o,
                                stream_ref::host());
    for (std::int64_t i = 0; i < count; ++i) {
      result.out.push_back(element_as_float(out.data(), out_type, i));
    }
    return result;
  }

  struct expectation {
    std::vector<reference::attention_result> rows;   ///< [tokens * query heads]
    std::vector<std::vector<std::int64_t>> entries;  ///< that each attends to
    std::vector<double> logit_error;                 ///< bound on the error of a logit in single precision
    std::vector<double> value_max;
  };

  double scale() const {
    return options.softmax_scale > 0 ? double(options.softmax_scale) : 1 / std::sqrt(double(shape.key_dim));
  }

  expectation expected() {
    expectation all;
    std::int64_t row = 0;
    for (const auto& item : items) {
      for (std::int64_t t = 0; t < item.num_tokens; ++t, ++row) {
        for (std::int64_t head = 0; head < query_heads; ++head) add_expected(all, item, row, t, head);
      }
    }
    return all;
  }

  /// Empty if `got` agrees with the reference, else what differs.
  std::string difference(const attend_output& got, dtype out_type = dtype::f32) {
    if (got.code != status::ok) return to_string(got.code);
    const expectation want = expected();
    const auto dim = std::size_t(shape.value_dim);
    for (std::size_t r = 0; r < want.rows.size(); ++r) {
      const double lse = want.rows[r].lse, got_lse = double(got.lse[r]);
      const double error = want.logit_error[r] + 0x1p-20;
      if (std::isinf(lse) ? got_lse != lse
                          : !(std::fabs(got_lse - lse) <= error + 0x1p-22 * std::fabs(lse))) {
        return "lse of row " + std::to_string(r) + ": " + std::to_string(got_lse) + " for " +
               std::to_string(lse);
      }
      for (std::size_t i = 0; i < dim; ++i) {
        const double value = want.rows[r].out[i], x = double(got.out[r * dim + i]);
        // An error of d in each logit moves a convex combination by at most 2 d times the largest value.
        const double allowed =
            2 * error * want.value_max[r] + rounding_of(out_type) * std::fabs(value) + 0x1p-25;
        if (!(std::fabs(x - value) <= allowed)) {
          return "row " + std::to_string(r) + " element " + std::to_string(i) + ": " + std::to_string(x) +
                 " for " + std::to_string(value) + ", allowed " + std::to_string(allowed);
        }
      }
    }
    return "";
  }

 private:
  void add_expected(expectation& all, const batch_item& item, std::int64_t row, std::int64_t t,
                    std::int64_t head) {
    const kv_geometry& g = store.geometry();
    const std::int64_t kv_head = head / shape.group;
    std::vector<double> query;
    for (std::int64_t i = 0; i < g.key_dim; ++i) {
      query.push_back(
          double(element_as_float(q.data(), shape.q_type, (row * query_heads + head) * g.key_dim + i)));
    }
    std::optional<std::set<std::int32_t>> listed;
    if (list_length > 0) {
      const auto from = entries.begin() + row * list_length;
      listed.emplace(from, from + list_length);
    }
    std::vector<reference::entry> seen;
    all.entries.emplace_back();
    double condition = 0, value_max = 0;
    sequence_info info;
    if (store.info(item.sequence, &info) != status::ok) return;
    for (std::int64_t e = 0; e < g.entries_for(info.tokens); ++e) {
      if ((e + 1) * g.tokens_per_entry - 1 > item.position + t) continue;
      if (!attends_to(item, chunk_id(e / g.entries_per_chunk))) continue;
      if (listed && listed->count(std::int32_t(e)) == 0) continue;
      reference::entry entry;
      double sum = 0;
      for (std::int64_t i = 0; i < g.key_dim; ++i) {
        entry.key.push_back(
            double(element_as_float(store.key_row(item.sequence, layer, kv_head, e), g.type, i)));
        sum += std::fabs(entry.key.back() * query[std::size_t(i)]);
      }
      for (std::int64_t i = 0; i < g.value_dim; ++i) {
        entry.value.push_back(
            double(element_as_float(store.value_row(item.sequence, layer, kv_head, e), g.type, i)));
        value_max = std::max(value_max, std::fabs(entry.value.back()));
      }
      condition = std::max(condition, sum * scale());
      all.entries.back().push_back(e);
      seen.push_back(std::move(entry));
    }
    const double none = -std::numeric_limits<double>::infinity();
    const double sink = sinks.empty() ? none : double(sinks[std::size_t(head)]);
    all.rows.push_back(
        reference::attention(query, seen, g.value_dim, scale(), double(options.logit_soft_cap), sink));
    // Products and sums of up to 256 terms, in decoding in chains of at most 32, and the scale, each to half an ulp.
    all.logit_error.push_back((is_prompt(item) ? double(g.key_dim) + 8 : 40.0) * 0x1p-24 * condition);
    all.value_max.push_back(value_max);
  }
};

}  // namespace flashmemory_test
