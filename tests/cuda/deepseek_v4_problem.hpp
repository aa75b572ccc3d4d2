// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <flashmemory/cuda/deepseek_v4.hpp>
#include <random>
#include <string>
#include <vector>

#include "tests/cuda/gpu.hpp"
#include "tests/reference/deepseek_v4.hpp"

namespace flashmemory_test {

namespace v4 = flashmemory::cuda::deepseek_v4;

/// Pages of entries on the host and their copy on the device.
struct v4_pages {
  std::int32_t entries_per_page;
  std::int64_t page_stride;
  std::int64_t num_pages;
  std::vector<std::uint8_t> host;
  device_array<std::uint8_t> device;
  std::vector<std::vector<double>> values;  ///< of each entry, dequantised

  v4_pages(std::int32_t per_page, std::int64_t pages, std::mt19937_64& random, double size = 1,
           std::int64_t extra_stride = 0)
      : entries_per_page(per_page),
        page_stride(v4::page_bytes(per_page) + extra_stride),
        num_pages(pages),
        host(static_cast<std::size_t>(page_stride * pages), 0xff),
        values(static_cast<std::size_t>(per_page * pages)) {
    std::normal_distribution<float> normal;
    std::vector<float> row(512);
    for (std::size_t i = 0; i < values.size(); ++i) {
      for (std::size_t g = 0; g < 8; ++g) {
        const float group = static_cast<float>(size) * std::exp2(std::round(normal(random)));
        for (std::size_t j = 0; j < 64; ++j) row[64 * g + j] = normal(random) * group;
      }
      put(static_cast<std::int64_t>(i), row);
    }
    upload();
  }

  /// Overwrites an entry on the host.
  void put(std::int64_t entry, const std::vector<float>& row) { put(entry, quantised(row)); }
  void put(std::int64_t entry, const reference::v4_entry& bytes) {
    std::uint8_t* page = host.data() + entry / entries_per_page * page_stride;
    const auto slot = static_cast<std::int32_t>(entry % entries_per_page);
    std::memcpy(page + v4::row_offset(slot), bytes.row.data(), 576);
    std::memcpy(page + v4::scale_offset(entries_per_page, slot), bytes.scales.data(), 8);
    values[static_cast<std::size_t>(entry)] = reference::v4_dequantise(bytes);
  }
  void upload() { device = device_array<std::uint8_t>(host); }

  v4::page_pool pool() const {
    v4::page_pool p;
    p.pages = reinterpret_cast<std::byte*>(device.data());
    p.page_stride = page_stride;
    p.num_pages = num_pages;
    p.entries_per_page = entries_per_page;
    return p;
  }

 private:
  /// The library's, which a test of its own compares with the reference: that one is slow.
  static reference::v4_entry quantised(const std::vector<float>& row) {
    reference::v4_entry entry;
    flashmemory::deepseek_v4::quantise_entry(row.data(), reinterpret_cast<std::byte*>(entry.row.data()),
                                             reinterpret_cast<std::byte*>(entry.scales.data()));
    return entry;
  }
};

/// A list of entries per row, as both sides hold it.
struct v4_lists {
  std::int64_t rows, capacity;
  std::vector<std::int32_t> entries, counts;
  device_array<std::int32_t> device_entries, device_counts;

  v4_lists(std::int64_t n, std::int64_t most)
      : rows(n),
        capacity(most),
        entries(static_cast<std::size_t>(n * most), -1),
        counts(static_cast<std::size_t>(n)) {}

  /// `count` different entries of a pool of `pool_entries`, in any order.
  void fill(std::int64_t row, std::int32_t count, std::int64_t pool_entries, std::mt19937_64& random) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(pool_entries));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
    std::shuffle(all.begin(), all.end(), random);
    std::copy(all.begin(), all.begin() + count, entries.begin() + row * capacity);
    counts[static_cast<std::size_t>(row)] = count;
  }
  void upload() {
    device_entries = device_array<std::int32_t>(entries);
    device_counts = device_array<std::int32_t>(counts);
  }
  v4::entry_source source(const v4::page_pool& pool) const {
    v4::entry_source s;
    s.pool = pool;
    s.entries = flashmemory::view<const std::int32_t, 2>(device_entries.data(), rows, capacity);
    s.counts = flashmemory::view<const std::int32_t, 1>(device_counts.data(), rows);
    return s;
  }
};

/// A batch with everything it needs. Output and lse are NaNs before a run.
struct v4_problem {
  std::int64_t rows;
  std::int32_t heads;
  v4_pages window_pages, selected_pages;
  v4_lists window, selected;
  std::vector<std::uint16_t> q;
  std::vector<float> sinks;
  bool use_sinks = false;
  device_array<std::uint16_t> device_q, out;
  device_array<float> device_sinks, lse;
  device_array<std::uint8_t> scratch;  ///< for any plan
  device_stream stream;

  v4_problem(std::int64_t n, std::int32_t num_heads, std::int64_t window_capacity, std::int64_t capacity,
             std::int32_t per_page, std::mt19937_64& random, double size = 1)
      : rows(n),
        heads(num_heads),
        window_pages(256, 2, random, size),
        selected_pages(per_page, std::max<std::int64_t>(2, (capacity * 5 / 4 + per_page - 1) / per_page),
                       random, size, 576),
        window(n, window_capacity),
        selected(n, capacity),
        q(static_cast<std::size_t>(n * num_heads * 512)),
        sinks(static_cast<std::size_t>(num_heads)),
        out(q.size()),
        lse(static_cast<std::size_t>(n * num_heads)),
        scratch(static_cast<std::size_t>(n * num_heads / 64 * 8 * (65536 + 4 * 1024))) {
    std::normal_distribution<float> normal;
    for (auto& x : q) x = reference::bf16_bits(normal(random));
    for (auto& x : sinks) x = normal(random) * 3;
    device_q = device_array<std::uint16_t>(q);
    device_sinks = device_array<float>(sinks);
  }

  std::int64_t pool_entries() const { return selected_pages.num_pages * selected_pages.entries_per_page; }

  /// Lengths and entries of every row at random, up to the given counts; at those counts if `full`.
  void fill(std::int32_t window_count, std::int32_t selected_count, bool full, std::mt19937_64& random) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto some = [&](std::int32_t most) {
        return full || most == 0 ? most
                                 : static_cast<std::int32_t>(random() % (static_cast<unsigned>(most) + 1));
      };
      window.fill(r, some(window_count), 512, random);
      selected.fill(r, some(selected_count), pool_entries(), random);
    }
    window.upload();
    selected.upload();
  }

  v4::attend_shape shape() const {
    v4::attend_shape s;
    s.rows = rows;
    s.heads = heads;
    s.max_entries = static_cast<std::int32_t>(window.capacity + selected.capacity);
    return s;
  }

  flashmemory::status enqueue(const v4::attend_plan& plan) {
    flashmemory::attend_options options;
    if (use_sinks) options.sink_logits = flashmemory::view<const float, 1>(device_sinks.data(), heads);
    options.lse = flashmemory::view<float, 2>(lse.data(), rows, heads);
    options.scratch = {scratch.data(), scratch.bytes()};
    return v4::sparse_attend(
        plan, window.source(window_pages.pool()), selected.source(selected_pages.pool()),
        flashmemory::const_tensor<3>(device_q.data(), flashmemory::dtype::bf16, rows, heads, 512),
        flashmemory::tensor<3>(out.data(), flashmemory::dtype::bf16, rows, heads, 512), options,
        stream.ref());
  }

  void run(const v4::attend_plan& plan) {
    must(cudaMemset(out.data(), 0xff, out.bytes()));
    must(cudaMemset(lse.data(), 0xff, lse.bytes()));
    must(cudaDeviceSynchronize());
    REQUIRE(enqueue(plan) == flashmemory::status::ok);
    stream.wait();
  }

  /// The entries that a row attends to.
  std::vector<std::vector<double>> entries_of(std::int64_t row) const {
    std::vector<std::vector<double>> all;
    const auto add = [&](const v4_lists& list, const v4_pages& pages) {
      const std::int64_t count =
          std::clamp<std::int64_t>(list.counts[static_cast<std::size_t>(row)], 0, list.capacity);
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int32_t e = list.entries[static_cast<std::size_t>(row * list.capacity + i)];
        if (e >= 0 && e < static_cast<std::int64_t>(pages.values.size())) {
          all.push_back(pages.values[static_cast<std::size_t>(e)]);
        }
      }
    };
    add(window, window_pages);
    add(selected, selected_pages);
    return all;
  }

  /// What the reference makes of some heads of every row.
  struct expectation {
    std::int64_t row;
    std::int32_t head;
    reference::attention_result result;
    double largest;  ///< sum of weight * |value| over the entries, and no less than float weights can show
  };
  std::vector<expectation> expect(std::int32_t head_step = 13) const {
    std::vector<expectation> all;
    for (std::int64_t r = 0; r < rows; ++r) {
      std::vector<reference::entry> entries;
      for (const auto& v : entries_of(r)) entries.push_back({v, v});
      for (std::int32_t h = static_cast<std::int32_t>(r) % head_step; h < heads; h += head_step) {
        const std::size_t at = static_cast<std::size_t>(r * heads + h);
        std::vector<double> query(512);
        for (std::size_t i = 0; i < 512; ++i) query[i] = reference::bf16_value(q[at * 512 + i]);
        std::optional<double> sink;
        if (use_sinks) sink = double(sinks[static_cast<std::size_t>(h)]);
        auto result = reference::attention(query, entries, 512, 1 / std::sqrt(512.0), 0, sink);
        // Either rounding to bf16, of weights and of outputs, is off by up to 2^-8 of this.
        std::vector<double> mass(512, 0);
        double largest = 1e-30;
        for (std::size_t e = 0; e < entries.size(); ++e) {
          for (std::size_t i = 0; i < 512; ++i) {
            mass[i] += std::fabs(entries[e].value[i]) * result.weights[e];
            largest = std::fmax(largest, std::fabs(entries[e].value[i]) * 0x1p-100);
          }
        }
        for (const double x : mass) largest = std::fmax(largest, x);
        all.push_back({r, h, std::move(result), largest});
      }
    }
    return all;
  }

  struct errors {
    double out = 0;   ///< largest, relative to the row's largest sum of weight * |value|
    double norm = 0;  ///< root of the squared differences over that of the squared values, worst row and head
    double lse = 0;   ///< largest, relative to 1 or the value
  };
  errors compare(const std::vector<expectation>& expected) const {
    const auto got = out.get();
    const auto got_lse = lse.get();
    errors worst;
    const auto note = [](double& into, double off) {
      if (!(off <= into)) into = std::isnan(off) ? INFINITY : off;
    };
    for (const expectation& e : expected) {
      const std::size_t at = static_cast<std::size_t>(e.row * heads + e.head);
      double off_squares = 0, squares = 1e-30;
      for (std::size_t i = 0; i < 512; ++i) {
        const double off = reference::bf16_value(got[at * 512 + i]) - e.result.out[i];
        off_squares += off * off;
        squares += e.result.out[i] * e.result.out[i];
        note(worst.out, std::fabs(off) / e.largest);
      }
      if (squares > 1e-20) note(worst.norm, std::sqrt(off_squares / squares));
      const double l = double(got_lse[at]);
      if (std::isinf(e.result.lse) || std::isinf(l)) {
        note(worst.lse, l == e.result.lse ? 0 : INFINITY);
      } else {
        note(worst.lse, std::fabs(l - e.result.lse) / std::fmax(1, std::fabs(e.result.lse)));
      }
    }
    return worst;
  }
};

}  // namespace flashmemory_test
