// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/prompt_attend.hpp>

#include "tests/cuda/attend_problem.hpp"

namespace flashmemory_test {

/// One item: consecutive tokens of a sequence, behind what is already there.
struct prompt_item {
  std::int64_t position = 0;
  std::int32_t tokens = 0;
  std::int64_t entries = -1;  ///< that may be read; -1 = up to the last token
};

/// Items with random K, V and queries: what the kernels read, in device memory, and the same numbers on the host. Slots lie
/// in random order in one pool; what no entry fills is NaN.
struct prompt_problem {
  cu::prompt_shape shape;
  std::int32_t layer = 0;
  std::vector<prompt_item> items;
  double kept = 1;  ///< share of the chunks before an item's tokens that its list has
  float scale = 0, soft_cap = 0, spread = 1;
  bool with_sinks = false;
  fm::dtype out_type = fm::dtype::f32;

  std::mt19937 random;
  std::vector<std::vector<float>> keys, values;   ///< per item [entries, kv_heads, dim], as stored
  std::vector<std::vector<fm::chunk_id>> listed;  ///< per item
  std::vector<float> queries, sinks;

  device_array<std::byte> pool, q, out, state;
  std::vector<device_array<const std::byte*>> tables;
  std::vector<device_array<fm::chunk_id>> ids;
  std::vector<cu::prompt_row> host_rows;
  device_array<cu::prompt_row> rows;
  device_array<std::uint32_t> counters{std::vector<std::uint32_t>(cu::attend_counters, 0)};
  device_array<float> lse, device_sinks;

  explicit prompt_problem(std::uint32_t seed) : random(seed) {}

  const fm::kv_geometry& geometry() const { return shape.geometry; }
  std::int64_t entries_of(std::size_t i) const {
    return items[i].entries >= 0 ? items[i].entries : items[i].position + items[i].tokens;
  }
  std::int64_t tokens() const {
    std::int64_t n = 0;
    for (const auto& item : items) n += item.tokens;
    return n;
  }
  std::vector<float> noise(std::int64_t count, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& value : x) {
      std::byte bytes[4];
      store_as(geometry().type, bytes, normal(random));
      value = load_as(geometry().type, bytes);
    }
    return x;
  }

  /// Draws the numbers and lists; place() puts them on the device.
  void draw() {
    const auto& g = geometry();
    keys.clear();
    values.clear();
    listed.clear();
    std::uniform_real_distribution<double> share(0, 1);
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::int64_t n = entries_of(i);
      keys.push_back(noise(n * g.kv_heads * g.key_dim, spread));
      values.push_back(noise(n * g.kv_heads * g.value_dim, 1));
      listed.emplace_back();
      for (std::int64_t c = 0; c < g.chunks_for(n); ++c)
        if ((c + 1) * g.entries_per_chunk > items[i].position || share(random) < kept)
          listed.back().push_back(static_cast<fm::chunk_id>(c));
    }
    queries = noise(tokens() * shape.query_heads * g.key_dim, 1);
    std::normal_distribution<float> normal(0, 3);
    sinks.resize(std::size_t(shape.query_heads));
    for (float& s : sinks) s = normal(random);
  }

  /// Lays the chunks out at places that depend on `order`.
  void place(std::uint32_t order) {
    const auto& g = geometry();
    const fm::chunk_layout layout(g);
    const std::size_t size = fm::size_of(g.type);
    std::size_t chunks = 0;
    for (const auto& list : listed) chunks += list.size();
    std::vector<std::size_t> slots(chunks + 7);
    std::iota(slots.begin(), slots.end(), std::size_t{0});
    std::mt19937 shuffle(order);
    std::shuffle(slots.begin(), slots.end(), shuffle);
    std::vector<std::byte> host(slots.size() * layout.chunk_bytes(), std::byte{0xff});
    pool = device_array<std::byte>(host.size());
    tables.clear();
    ids.clear();
    host_rows.clear();
    std::size_t next = 0;
    std::int64_t first_token = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      std::vector<const std::byte*> table;
      for (const fm::chunk_id c : listed[i]) {
        const std::size_t at = slots[next++] * layout.chunk_bytes();
        table.push_back(pool.data() + at);
        const std::int64_t begin = std::int64_t(c) * g.entries_per_chunk;
        const std::int64_t there = std::min<std::int64_t>(g.entries_per_chunk, entries_of(i) - begin);
        for (std::int64_t e = 0; e < there; ++e)
          for (std::int32_t h = 0; h < g.kv_heads; ++h) {
            const std::int64_t entry = (begin + e) * g.kv_heads + h;
            for (std::int32_t d = 0; d < g.key_dim; ++d)
              store_as(g.type,
                       host.data() + at + layout.key_offset(layer, h) + std::size_t(e * g.key_dim + d) * size,
                       keys[i][std::size_t(entry * g.key_dim + d)]);
            for (std::int32_t d = 0; d < g.value_dim; ++d)
              store_as(
                  g.type,
                  host.data() + at + layout.value_offset(layer, h) + std::size_t(e * g.value_dim + d) * size,
                  values[i][std::size_t(entry * g.value_dim + d)]);
          }
      }
      tables.emplace_back(table);
      ids.emplace_back(listed[i]);
      cu::prompt_row row;
      row.chunks = tables.back().data();
      row.ids = ids.back().data();
      row.count = std::int64_t(listed[i].size());
      row.entries = entries_of(i);
      row.position = items[i].position;
      row.first_token = first_token;
      row.tokens = items[i].tokens;
      host_rows.push_back(row);
      first_token += items[i].tokens;
    }
    pool.put(host);
    rows = device_array<cu::prompt_row>(host_rows);
    std::vector<std::byte> bytes(queries.size() * size);
    for (std::size_t i = 0; i < queries.size(); ++i) store_as(g.type, bytes.data() + i * size, queries[i]);
    q = device_array<std::byte>(bytes);
    device_sinks = device_array<float>(sinks);
    out = device_array<std::byte>(std::size_t(tokens() * shape.query_heads * g.value_dim) *
                                  fm::size_of(out_type));
    lse = device_array<float>(std::size_t(tokens() * shape.query_heads));
  }

  void make_state(const cu::prompt_plan& plan) {
    state = device_array<std::byte>(cu::prompt_state_bytes(plan));
  }

  cu::prompt_options options() const {
    cu::prompt_options o;
    o.softmax_scale = scale;
    o.logit_soft_cap = soft_cap;
    if (with_sinks) o.sink_logits = fm::view<const float, 1>(device_sinks.data(), shape.query_heads);
    o.lse = fm::view<float, 2>(lse.data(), tokens(), shape.query_heads);
    o.state = {state.data(), state.size()};
    o.counters = counters.data();
    return o;
  }
  fm::status run(const cu::prompt_plan& plan, const device_array<cu::prompt_row>& which, bool first,
                 bool last, const device_stream& stream) const {
    const auto& g = geometry();
    cu::prompt_options o = options();
    o.first = first;
    o.last = last;
    return cu::prompt_attend(
        plan, fm::view<const cu::prompt_row, 1>(which.data(), std::int64_t(which.size())), layer,
        fm::const_tensor<3>(q.data(), g.type, tokens(), shape.query_heads, g.key_dim),
        fm::tensor<3>(out.data(), out_type, tokens(), shape.query_heads, g.value_dim), o, stream.ref());
  }
  /// Poisons what is written, runs the whole lists and waits.
  std::vector<std::byte> result(const cu::prompt_plan& plan, const device_stream& stream) const {
    fill(out.data(), 0xff, out.bytes());
    fill(lse.data(), 0xff, lse.bytes());
    REQUIRE(run(plan, rows, true, true, stream) == fm::status::ok);
    stream.wait();
    return out.get();
  }
  /// The same in `parts` calls, every list cut at random places.
  std::vector<std::byte> result_in_parts(const cu::prompt_plan& plan, int parts,
                                         const device_stream& stream) {
    fill(out.data(), 0xff, out.bytes());
    fill(lse.data(), 0xff, lse.bytes());
    fill(state.data(), 0xff, state.bytes());
    std::vector<std::vector<std::int64_t>> cuts;
    for (const auto& row : host_rows) {
      cuts.push_back({0, row.count});
      for (int i = 1; i < parts; ++i)
        cuts.back().push_back(std::uniform_int_distribution<std::int64_t>(0, row.count)(random));
      std::sort(cuts.back().begin(), cuts.back().end());
    }
    for (int part = 0; part < parts; ++part) {
      auto some = host_rows;
      for (std::size_t i = 0; i < some.size(); ++i) {
        const std::int64_t begin = cuts[i][std::size_t(part)], end = cuts[i][std::size_t(part) + 1];
        some[i].chunks += begin;
        some[i].ids += begin;
        some[i].count = end - begin;
      }
      const device_array<cu::prompt_row> device_rows(some);
      REQUIRE(run(plan, device_rows, part == 0, part == parts - 1, stream) == fm::status::ok);
      stream.wait();
    }
    return out.get();
  }

  /// The reference for one query row.
  reference::attention_result expected(std::size_t i, std::int32_t token, std::int64_t row,
                                       std::int32_t head) const {
    const auto& g = geometry();
    const std::int32_t kv_head = head / (shape.query_heads / g.kv_heads);
    const std::int64_t visible = std::min(entries_of(i), items[i].position + token + 1);
    std::vector<reference::entry> list;
    for (const fm::chunk_id c : listed[i])
      for (std::int64_t e = std::int64_t(c) * g.entries_per_chunk;
           e < std::min<std::int64_t>(visible, (std::int64_t(c) + 1) * g.entries_per_chunk); ++e) {
        const auto k = keys[i].begin() + (e * g.kv_heads + kv_head) * g.key_dim;
        const auto v = values[i].begin() + (e * g.kv_heads + kv_head) * g.value_dim;
        list.push_back({{k, k + g.key_dim}, {v, v + g.value_dim}});
      }
    const auto from = queries.begin() + (row * shape.query_heads + head) * g.key_dim;
    return reference::attention({from, from + g.key_dim}, list, g.value_dim,
                                scale > 0 ? double(scale) : 1 / std::sqrt(double(g.key_dim)), soft_cap,
                                with_sinks ? std::optional<double>(sinks[std::size_t(head)]) : std::nullopt);
  }

  /// The largest error of an output as a share of the largest |v|, and of lse, against the reference: of some rows, the first
  /// and the last of each item among them. Of the others it is asked that they are numbers.
  error_summary compare() {
    const auto& g = geometry();
    const auto bytes = out.get();
    const auto logs = lse.get();
    error_summary worst;
    std::int64_t row = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      double largest = 1e-3;
      for (const float v : values[i]) largest = std::max(largest, double(std::abs(v)));
      for (std::int32_t t = 0; t < items[i].tokens; ++t, ++row)
        for (std::int32_t h = 0; h < shape.query_heads; ++h) {
          const std::int64_t at = row * shape.query_heads + h;
          const bool edge = t == 0 || t + 1 == items[i].tokens;
          if (!edge &&
              std::uniform_int_distribution<std::int64_t>(0, tokens() * shape.query_heads)(random) > 150) {
            for (std::int32_t d = 0; d < g.value_dim; ++d) {
              const float got =
                  load_as(out_type, bytes.data() + std::size_t(at * g.value_dim + d) * fm::size_of(out_type));
              if (!std::isfinite(got)) worst.value = 1e9;
            }
            continue;
          }
          const auto wanted = expected(i, t, row, h);
          if (std::isinf(wanted.lse))
            worst.lse = logs[std::size_t(at)] == wanted.lse ? worst.lse : 1e9;
          else
            worst.lse = std::max(worst.lse, number(std::abs(logs[std::size_t(at)] - wanted.lse)) /
                                                std::max(1.0, std::abs(wanted.lse)));
          for (std::int32_t d = 0; d < g.value_dim; ++d) {
            const float got =
                load_as(out_type, bytes.data() + std::size_t(at * g.value_dim + d) * fm::size_of(out_type));
            worst.value = std::max(worst.value, number(std::abs(got - wanted.out[std::size_t(d)])) / largest);
          }
        }
    }
    return worst;
  }

 private:
  static double number(double x) { return std::isfinite(x) ? x : 1e9; }
};

/// As tolerance_of(attend_plan): a weight that is rounded to 8 or 11 bits is off by 2^-8 or 2^-11 of itself at most, and so
/// is what it adds; few entries that weigh most come near that.
inline double tolerance_of(const cu::prompt_plan& plan) {
  if (!plan.tensor_cores) return 2e-5;
  return (plan.shape.geometry.type == fm::dtype::bf16 ? 0x1p-8 : 0x1p-11) + 2e-5;
}

}  // namespace flashmemory_test
