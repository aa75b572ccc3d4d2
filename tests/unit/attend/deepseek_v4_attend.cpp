// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <flashmemory/attend/deepseek_v4.hpp>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/reference/deepseek_v4.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;
namespace v4 = flashmemory::deepseek_v4;
namespace reference = flashmemory_test::reference;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

struct pages {
  std::vector<std::byte> memory;
  v4::page_pool pool;

  pages(std::int32_t per_page, std::int64_t count, std::mt19937& random, float size = 1)
      : memory(std::size_t(v4::page_bytes(per_page) * count), std::byte{0xff}) {
    pool.pages = memory.data();
    pool.page_stride = v4::page_bytes(per_page);
    pool.num_pages = count;
    pool.entries_per_page = per_page;
    std::normal_distribution<float> normal;
    for (std::int32_t e = 0; e < per_page * count; ++e) {
      std::vector<float> values(512);
      for (float& x : values) x = normal(random) * size;
      put(e, values);
    }
  }
  void put(std::int32_t entry, const std::vector<float>& values) {
    REQUIRE(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f32, 1, 512),
                               view<const std::int32_t, 1>(&entry, 1)) == status::ok);
  }
  std::vector<double> values(std::int32_t entry) const {
    reference::v4_entry e;
    const std::byte* page = pool.pages + entry / pool.entries_per_page * pool.page_stride;
    const std::int32_t slot = entry % pool.entries_per_page;
    std::memcpy(e.row.data(), page + v4::row_offset(slot), 576);
    std::memcpy(e.scales.data(), page + v4::scale_offset(pool.entries_per_page, slot), 8);
    return reference::v4_dequantise(e);
  }
};

struct lists {
  std::int64_t rows, capacity;
  std::vector<std::int32_t> entries, counts;
  lists(std::int64_t n, std::int64_t most)
      : rows(n), capacity(most), entries(std::size_t(n * most), -1), counts(std::size_t(n)) {}
  v4::entry_source source(const pages& p) const {
    v4::entry_source s;
    s.pool = p.pool;
    s.entries = view<const std::int32_t, 2>(entries.data(), rows, capacity);
    s.counts = view<const std::int32_t, 1>(counts.data(), rows);
    return s;
  }
  void add_to(std::vector<std::vector<double>>& all, std::int64_t row, const pages& p) const {
    for (std::int64_t i = 0; i < std::min<std::int64_t>(counts[std::size_t(row)], capacity); ++i) {
      const std::int32_t e = entries[std::size_t(row * capacity + i)];
      if (e >= 0 && e < p.pool.num_pages * p.pool.entries_per_page) all.push_back(p.values(e));
    }
  }
};

struct problem {
  std::int64_t rows, heads;
  std::vector<float> q, out, lse, sinks;
  problem(std::int64_t r, std::int64_t h, std::mt19937& random)
      : rows(r), heads(h), q(std::size_t(r * h * 512)), out(q.size(), -7), lse(std::size_t(r * h), -7) {
    std::normal_distribution<float> normal;
    for (float& x : q) x = normal(random);
  }
  flashmemory::attend_options options() {
    flashmemory::attend_options o;
    o.lse = view<float, 2>(lse.data(), rows, heads);
    if (!sinks.empty()) o.sink_logits = view<const float, 1>(sinks.data(), heads);
    return o;
  }
  const_tensor<3> query() const { return const_tensor<3>(q.data(), dtype::f32, rows, heads, 512); }
  tensor<3> result() { return tensor<3>(out.data(), dtype::f32, rows, heads, 512); }

  void check(const lists& window, const pages& window_pages, const lists& selected,
             const pages& selected_pages) {
    REQUIRE(v4::sparse_attend(window.source(window_pages), selected.source(selected_pages), query(), result(),
                              options()) == status::ok);
    double worst = 0, worst_lse = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      std::vector<std::vector<double>> values;
      window.add_to(values, r, window_pages);
      selected.add_to(values, r, selected_pages);
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::size_t at = std::size_t(r * heads + h);
        const std::vector<double> query_row(q.begin() + std::ptrdiff_t(at * 512),
                                            q.begin() + std::ptrdiff_t((at + 1) * 512));
        std::optional<double> sink;
        if (!sinks.empty()) sink = double(sinks[std::size_t(h)]);
        const auto expected = reference::v4_attend(query_row, values, 1 / std::sqrt(512.0), sink);
        double largest = 1e-30;
        for (const double x : expected.out) largest = std::fmax(largest, std::fabs(x));
        for (std::size_t i = 0; i < 512; ++i) {
          const double off = std::fabs(expected.out[i] - double(out[at * 512 + i])) / largest;
          if (!(off <= worst)) worst = std::isnan(off) ? INFINITY : off;
        }
        if (std::isinf(expected.lse)) {
          CHECK(double(lse[at]) == expected.lse);
        } else {
          const double off =
              std::fabs(expected.lse - double(lse[at])) / std::fmax(1, std::fabs(expected.lse));
          if (!(off <= worst_lse)) worst_lse = std::isnan(off) ? INFINITY : off;
        }
      }
    }
    CHECK(worst < 2e-5);
    CHECK(worst_lse < 1e-6);
  }
};

}  // namespace

TEST_CASE("V4 attention on the CPU agrees with the reference", "[attend][v4]") {
  const auto seed = flashmemory_test::fresh_seed();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  pages window_pages(256, 2, random), csa(64, 2, random), hca(2, 40, random);
  for (const std::int64_t heads : {1, 7, 64}) {
    for (const pages* selected_pages : {&csa, &hca}) {
      problem p(3, heads, random);
      if (heads != 7) p.sinks = std::vector<float>(std::size_t(heads), 0.7f);
      lists window(3, 19), selected(3, 33);
      const std::int32_t lengths[3][2] = {{0, 0}, {1, 5}, {19, 33}};
      for (std::size_t r = 0; r < 3; ++r) {
        window.counts[r] = lengths[r][0];
        selected.counts[r] = lengths[r][1];
      }
      for (auto& e : window.entries) e = std::int32_t(random() % 512);
      for (auto& e : selected.entries) e = std::int32_t(random() % 80);
      p.check(window, window_pages, selected, *selected_pages);
      window.counts = {19, 0, 3};
      selected.counts = {0, 33, 0};
      p.check(window, window_pages, selected, *selected_pages);
      for (auto& e : selected.entries) {
        if (random() % 2 == 0) e = random() % 2 == 0 ? -1 : 1 << 30;
      }
      selected.counts = {33, 33, 1000};
      p.check(window, window_pages, selected, *selected_pages);
    }
  }
}

TEST_CASE("V4 attention over padding alone is zero", "[attend][v4]") {
  std::mt19937 random(3);
  pages some(64, 1, random);
  problem p(2, 5, random);
  lists window(2, 4), selected(2, 4);
  window.counts = selected.counts = {4, 4};
  p.check(window, some, selected, some);
  CHECK(p.out == std::vector<float>(p.out.size(), 0));
  CHECK(p.lse == std::vector<float>(p.lse.size(), -inf));
  p.sinks = {0, 1, -inf, 1e30f, -1e30f};
  p.check(window, some, selected, some);
  CHECK(p.out == std::vector<float>(p.out.size(), 0));
  CHECK(p.lse[1] == 1.0f);

  // No source at all is the same as empty ones.
  REQUIRE(v4::sparse_attend({}, {}, p.query(), p.result(), p.options()) == status::ok);
  CHECK(p.out == std::vector<float>(p.out.size(), 0));
}

TEST_CASE("V4 attention with sinks and logits at the edges", "[attend][v4]") {
  std::mt19937 random(4);
  pages some(64, 2, random, 100);
  problem p(2, 6, random);
  p.sinks = {-inf, -1e30f, 1e30f, 1000, -1000, 0};
  lists window(2, 30), selected(2, 30);
  for (auto* l : {&window, &selected}) {
    l->counts = {30, 30};
    for (auto& e : l->entries) e = std::int32_t(random() % 128);
  }
  p.check(window, some, selected, some);
  for (float& x : p.q) x *= 1e-6f;
  p.check(window, some, selected, some);
}

TEST_CASE("V4 attention does not depend on threads, and refuses what cannot work", "[attend][v4]") {
  std::mt19937 random(5);
  pages some(64, 2, random);
  problem p(3, 64, random);
  lists window(3, 8), selected(3, 40);
  window.counts = {8, 3, 0};
  selected.counts = {40, 7, 1};
  for (auto& e : window.entries) e = std::int32_t(random() % 128);
  for (auto& e : selected.entries) e = std::int32_t(random() % 128);
  auto options = p.options();
  const auto w = window.source(some), s = selected.source(some);
  REQUIRE(v4::sparse_attend(w, s, p.query(), p.result(), options) == status::ok);
  const auto first = p.out;
  options.threads = serial_threads();
  REQUIRE(v4::sparse_attend(w, s, p.query(), p.result(), options) == status::ok);
  CHECK(p.out == first);

  fault error;
  options.error = &error;
  const auto call = [&](const v4::entry_source& a, const const_tensor<3>& q, const tensor<3>& out) {
    return v4::sparse_attend(a, s, q, out, options);
  };
  auto q = p.query();
  q.shape[2] = 511;
  CHECK(call(w, q, p.result()) == status::bad_shape);
  CHECK(error.expected == 512);
  q = p.query();
  q.shape[1] = 129;
  CHECK(call(w, q, p.result()) == status::bad_shape);
  q = p.query();
  q.data = nullptr;
  CHECK(call(w, q, p.result()) == status::null_data);
  q = p.query();
  q.type = static_cast<dtype>(9);
  CHECK(call(w, q, p.result()) == status::bad_dtype);
  auto out = p.result();
  out.shape[0] = 2;
  CHECK(call(w, p.query(), out) == status::bad_shape);
  auto bad = w;
  bad.pool.entries_per_page = 48;
  CHECK(call(bad, p.query(), p.result()) == status::bad_argument);
  bad = w;
  bad.pool.page_stride = 576;
  CHECK(call(bad, p.query(), p.result()) == status::bad_argument);
  bad = w;
  bad.entries.shape[0] = 2;
  CHECK(call(bad, p.query(), p.result()) == status::bad_shape);
  bad = w;
  bad.counts.shape[0] = 2;
  CHECK(call(bad, p.query(), p.result()) == status::bad_shape);
  options.softmax_scale = std::numeric_limits<float>::quiet_NaN();
  CHECK(call(w, p.query(), p.result()) == status::bad_argument);
  CHECK(p.out == first);
}
