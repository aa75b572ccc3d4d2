// SPDX-License-Identifier: MIT
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <flashmemory/attend/deepseek_v4.hpp>
#include <flashmemory/attend/sparse_attend.hpp>
#include <flashmemory/select/policy.hpp>
#include <limits>

#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr std::int64_t heads = 4;

/// 100 entries of one layer, all resident, and a query for the newest.
struct world {
  fm::tiered_chunk_store store;
  engine_sequence s;
  std::vector<std::byte> scratch;
  std::vector<float> q, out, lse;
  fm::fault why;

  static fm::store_options options(std::int32_t dim) {
    fm::kv_geometry g = small_geometry();
    g.layers = 1;
    g.key_dim = g.value_dim = dim;
    g.type = fm::dtype::f32;
    return small_options(g);
  }
  explicit world(std::int64_t tokens_there = 100, std::int32_t dim = 16) : store(options(dim)) {
    s = open(store, tokens(2000, 0));
    std::vector<float> rows;
    const std::int64_t kv_heads = store.geometry().kv_heads;
    for (std::int64_t i = 0; i < tokens_there * kv_heads * dim; ++i)
      rows.push_back(float(mixed(std::uint64_t(i)) % 2001) / 1000.0f + 0.25f);
    const fm::batch_item item{s.handle, 0, std::int32_t(tokens_there)};
    const fm::const_tensor<3> kv(rows.data(), fm::dtype::f32, tokens_there, kv_heads, dim);
    REQUIRE(store.append(fm::batch(&item, 1), 0, kv, kv, host) == status::ok);
    s.tokens = tokens_there;
    q.assign(std::size_t(heads * dim), 0.5f);
    out.assign(q.size(), -7);
    lse.assign(std::size_t(heads), -7);
    scratch.resize(1 << 20);
  }
  std::int64_t dim() const { return store.geometry().key_dim; }
  fm::attend_options options() {
    fm::attend_options o;
    o.scratch = {scratch.data(), scratch.size()};
    o.lse = fm::view<float, 2>(lse.data(), 1, heads);
    o.error = &why;
    return o;
  }
  status attend(const fm::attend_options& o) {
    const fm::batch_item item{s.handle, s.tokens - 1, 1};
    return fm::sparse_attend(store, fm::batch(&item, 1), 0, {q.data(), fm::dtype::f32, 1, heads, dim()},
                             {out.data(), fm::dtype::f32, 1, heads, dim()}, o, host);
  }
};

}  // namespace

TEST_CASE(
    "a list without entries attends to nothing, whatever its data pointer; only a default view means all",
    "[attend]") {
  world w;
  fm::attend_options o = w.options();
  REQUIRE(w.attend(o) == status::ok);
  CHECK(w.out[0] != 0);
  CHECK(std::isfinite(w.lse[0]));
  const std::vector<std::int32_t> none;
  const std::int32_t some[1] = {3};
  o.entries = fm::view<const std::int32_t, 2>(GENERATE(false, true) ? some : none.data(), 1, 0);
  REQUIRE(w.attend(o) == status::ok);
  for (const float x : w.out) CHECK(x == 0);
  for (const float x : w.lse) CHECK(x == -inf);
  float mass[30];
  const fm::batch_item item{w.s.handle, w.s.tokens - 1, 1};
  CHECK(fm::chunk_attention_mass(w.store, item, 0, {w.q.data(), fm::dtype::f32, 1, heads, w.dim()},
                                 fm::view<const float, 2>(w.lse.data(), 1, heads), o,
                                 fm::view<float, 1>(mass, 30), false) == status::unsupported);
}

TEST_CASE("lists of the wrong extents, or without the entries that they claim, are refused by name",
          "[attend]") {
  world w;
  fm::attend_options o = w.options();
  o.entries = fm::view<const std::int32_t, 2>(nullptr, 1, 4);
  CHECK(w.attend(o) == status::null_data);
  CHECK(std::string(w.why.what) == "entries");
  o.entries = fm::view<const std::int32_t, 2>(nullptr, 2, 0);
  CHECK(w.attend(o) == status::bad_shape);
  CHECK(std::string(w.why.what) == "rows of entries");
  o.entries = fm::view<const std::int32_t, 2>(nullptr, 1, -1);
  CHECK(w.attend(o) == status::bad_shape);
  CHECK(std::string(w.why.what) == "k of entries");
  CHECK(w.out[0] == -7);
}

TEST_CASE("a sink of +inf leaves nothing for the entries", "[attend]") {
  world w(GENERATE(100, 1900));  // one split and several
  fm::attend_options o = w.options();
  REQUIRE(w.attend(o) == status::ok);
  const auto plain = w.out;
  const float sinks[heads] = {inf, -inf, 0, inf};
  o.sink_logits = fm::view<const float, 1>(sinks, heads);
  REQUIRE(w.attend(o) == status::ok);
  const auto at = [&](const std::vector<float>& rows, std::int64_t head) {
    return rows[std::size_t(head * w.dim())];
  };
  for (const std::int64_t h : {0, 3}) {
    CHECK(at(w.out, h) == 0);
    CHECK(w.lse[std::size_t(h)] == inf);
  }
  CHECK(at(w.out, 1) == at(plain, 1));
  CHECK(std::isfinite(w.lse[2]));
  CHECK(std::fabs(at(w.out, 2)) < std::fabs(at(plain, 2)));
}

TEST_CASE("a sink of +inf leaves nothing for DeepSeek-V4's entries, and an empty list gives none",
          "[attend]") {
  using namespace fm::deepseek_v4;
  std::vector<std::byte> memory(std::size_t(page_bytes(csa_entries)));
  page_pool pool;
  pool.pages = memory.data();
  pool.page_stride = page_bytes(csa_entries);
  pool.num_pages = 1;
  pool.entries_per_page = csa_entries;
  std::vector<float> values(entry_dim, 0.5f);
  const std::int32_t place[] = {0};
  REQUIRE(append_entries(pool, {values.data(), fm::dtype::f32, 1, entry_dim},
                         fm::view<const std::int32_t, 1>(place, 1)) == status::ok);
  std::vector<float> q(2 * entry_dim, 0.1f), out(2 * entry_dim, -7), lse(2, -7);
  const float sinks[] = {inf, 0};
  fm::fault why;
  fm::attend_options o;
  o.sink_logits = fm::view<const float, 1>(sinks, 2);
  o.lse = fm::view<float, 2>(lse.data(), 1, 2);
  o.error = &why;
  entry_source window, selected;
  window.pool = pool;
  window.entries = fm::view<const std::int32_t, 2>(place, 1, 1);
  const auto run = [&] {
    return fm::deepseek_v4::sparse_attend(window, selected, {q.data(), fm::dtype::f32, 1, 2, entry_dim},
                                          {out.data(), fm::dtype::f32, 1, 2, entry_dim}, o);
  };
  REQUIRE(run() == status::ok);
  CHECK(out[0] == 0);
  CHECK(lse[0] == inf);
  CHECK(out[entry_dim] > 0.25f);
  CHECK(std::isfinite(lse[1]));
  window.entries = fm::view<const std::int32_t, 2>(nullptr, 1, 0);
  REQUIRE(run() == status::ok);
  CHECK(out[entry_dim] == 0);
  CHECK(lse[1] == 0);  // the sink alone
  window.entries = fm::view<const std::int32_t, 2>(nullptr, 1, 3);
  CHECK(run() == status::null_data);
  CHECK(std::string(why.what) == "entries");
}

TEST_CASE("merging is exact at the ends of the number range", "[attend]") {
  constexpr float huge = 3e38f;
  const auto merged = [](float a, float la, float b, float lb) {
    REQUIRE(fm::merge_attention(fm::view<float, 3>(&a, 1, 1, 1), fm::view<float, 2>(&la, 1, 1),
                                fm::view<const float, 3>(&b, 1, 1, 1),
                                fm::view<const float, 2>(&lb, 1, 1)) == status::ok);
    return std::make_pair(a, la);
  };
  CHECK(merged(huge, 0, huge, 0).first == huge);
  CHECK(merged(-huge, 5, huge, 5).first == 0);
  CHECK(merged(1, inf, 2, 0) == std::make_pair(1.0f, inf));
  CHECK(merged(1, 0, 2, inf) == std::make_pair(2.0f, inf));
  CHECK(merged(1, inf, 2, inf) == std::make_pair(1.5f, inf));
  CHECK(merged(std::nanf(""), -inf, 2, 1) == std::make_pair(2.0f, 1.0f));
  CHECK(merged(1, 1, std::nanf(""), -inf) == std::make_pair(1.0f, 1.0f));
  CHECK(merged(1, -huge, 2, huge) == std::make_pair(2.0f, huge));
}

TEST_CASE("scratch that is one byte short is found with any number of splits, and exactly enough works",
          "[attend]") {
  const std::int64_t length = GENERATE(1, 100, 300, 600, 1900);
  world w(length);
  const std::int64_t chunks = w.store.geometry().chunks_for(length);
  const std::size_t bytes = fm::attend_workspace_bytes(w.store.geometry(), heads, 1, chunks);
  CAPTURE(length, chunks, bytes);
  fm::attend_options o = w.options();
  o.scratch.bytes = bytes;
  // Nothing behind what was asked for is touched.
  std::fill(w.scratch.begin() + std::ptrdiff_t(bytes), w.scratch.end(), std::byte{0x5a});
  REQUIRE(w.attend(o) == status::ok);
  const auto right = w.out;
  CHECK(std::all_of(w.scratch.begin() + std::ptrdiff_t(bytes), w.scratch.end(),
                    [](std::byte b) { return b == std::byte{0x5a}; }));
  std::fill(w.out.begin(), w.out.end(), -7.0f);
  o.scratch.bytes = bytes - 1;
  CHECK(w.attend(o) == status::workspace_small);
  CHECK(w.why.expected == std::int64_t(bytes));
  CHECK(w.out[0] == -7);
  o.scratch.bytes = bytes;
  REQUIRE(w.attend(o) == status::ok);
  CHECK(w.out == right);
}

TEST_CASE("arithmetic on sizes sticks at the largest number", "[attend]") {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  constexpr std::size_t all = std::numeric_limits<std::size_t>::max();
  const fm::kv_geometry g = small_geometry();
  CHECK(g.chunks_for(most) == most / 4 + 1);
  CHECK(g.chunks_for(0) == 0);
  CHECK(g.chunks_for(4) == 1);
  CHECK(g.chunks_for(5) == 2);
  CHECK(fm::attend_workspace_bytes(g, 1 << 30, std::int64_t{1} << 40, 64) == all);
  CHECK(fm::attend_workspace_bytes(g, 1 << 30, most, most) == all);
  CHECK(fm::attend_workspace_bytes(g, 8, 16, most) < all);
  fm::selection_policy p;
  p.budget_fraction = 1;
  CHECK(fm::budget_chunks(p, g, most) == most);
  const fm::sequence_options o = fm::sequence_options_for(p, g, most, most);
  CHECK(o.max_resident_chunks == g.chunks_for(most));
  p.budget_fraction = 0.25;
  const std::int64_t quota = fm::sequence_options_for(p, g, most, 8).max_resident_chunks;
  CHECK(quota > g.chunks_for(most) / 5);
  CHECK(quota < g.chunks_for(most) / 3);
}

TEST_CASE("a child of fork() attends with the parent's threads' results, and does not wait for its threads",
          "[attend]") {
  world w(1900);
  fm::attend_options o = w.options();
  o.threads = fm::default_threads();
  REQUIRE(w.attend(o) == status::ok);  // the threads are there
  const auto right = w.out;
  std::fill(w.out.begin(), w.out.end(), -7.0f);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(60);
    const bool old_hook = w.attend(o) == status::ok && w.out == right;
    o.threads = fm::default_threads();
    ::_exit(old_hook && w.attend(o) == status::ok && w.out == right ? 0 : 1);
  }
  int how = 0;
  REQUIRE(::waitpid(child, &how, 0) == child);
  CHECK(WIFEXITED(how));
  CHECK(WEXITSTATUS(how) == 0);
  REQUIRE(w.attend(o) == status::ok);
  CHECK(w.out == right);
}
