// SPDX-License-Identifier: MIT
#include <random>

#include "tests/cuda/step_world.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace step_testing;

namespace {

/// Two engines that get the same sequences and numbers, in lockstep.
struct pair_of_worlds {
  world a, b;
  std::vector<std::unique_ptr<world::sequence>> in_a, in_b;  ///< per row, null = empty
  std::mt19937 random;
  std::int64_t joined = 0, left = 0;

  pair_of_worlds(const number_pool& pool, const world_options& first, const world_options& second,
                 std::uint32_t seed)
      : a(pool, first, seed), b(pool, second, seed), random(seed) {
    in_a.resize(std::size_t(first.rows));
    in_b.resize(std::size_t(second.rows));
  }

  void join(std::size_t row, std::uint64_t at) {
    const auto prompt = std::int64_t(1 + random() % 150);
    in_a[row] = std::make_unique<world::sequence>(a.open());
    in_b[row] = std::make_unique<world::sequence>(b.open());
    a.prefill(*in_a[row], prompt, at);
    b.prefill(*in_b[row], prompt, at);
    ++joined;
  }
  void leave(std::size_t row) {
    // What was generated is what was captured: bytes of K, V and keys, from whichever tier has them.
    REQUIRE(a.contents(*in_a[row]) == b.contents(*in_b[row]));
    a.close(*in_a[row]);
    b.close(*in_b[row]);
    in_a[row].reset();
    in_b[row].reset();
    ++left;
  }
  void churn(std::uint64_t at, std::int64_t most_tokens) {
    for (std::size_t row = 0; row < in_a.size(); ++row) {
      if (in_a[row] == nullptr) {
        if (random() % 12 == 0) join(row, at * 100 + row);
      } else if (in_a[row]->tokens > most_tokens || random() % 150 == 0) {
        leave(row);
      }
    }
    if (random() % 40 == 0) {  // rows change places
      const std::size_t x = random() % in_a.size(), y = random() % in_a.size();
      std::swap(in_a[x], in_a[y]);
      std::swap(in_b[x], in_b[y]);
    }
  }
  static std::vector<world::sequence*> rows(const std::vector<std::unique_ptr<world::sequence>>& all) {
    std::vector<world::sequence*> list;
    for (const auto& s : all) list.push_back(s.get());
    return list;
  }
};

}  // namespace

TEST_CASE("steps replayed from one graph and eager steps give the same bytes while sequences join and leave",
          "[gpu][step]") {
  REQUIRE_GPU();
  struct {
    std::int32_t tokens;
    bool own_keys;
    int steps;
  } const setups[] = {{1, false, 10000}, {1, true, 1500}, {3, false, 1000}};
  for (const auto& setup : setups) {
    const auto seed = flashmemory_test::fresh_seed();
    CAPTURE(setup.tokens, setup.own_keys, seed);
    const number_pool pool(seed);
    world_options eager;
    eager.tokens = setup.tokens;
    eager.own_keys = setup.own_keys;
    world_options captured = eager;
    captured.captured = true;
    pair_of_worlds pair(pool, eager, captured, seed);
    std::int64_t tokens = 0, different_sets = 0;
    for (int i = 0; i < setup.steps; ++i) {
      CAPTURE(i);
      pair.churn(std::uint64_t(i), 560);
      const auto x = pair.rows(pair.in_a), y = pair.rows(pair.in_b);
      if (const auto code = pair.a.decode(x, std::uint64_t(i)); code != status::ok)
        FAIL(fm::describe(pair.a.step->last_fault()) << fm::describe(pair.a.select->last_fault()));
      if (const auto code = pair.b.decode(y, std::uint64_t(i)); code != status::ok)
        FAIL(fm::describe(pair.b.step->last_fault()) << fm::describe(pair.b.select->last_fault()));
      const auto& p = pair.a.outputs();
      const auto& q = pair.b.outputs();
      if (std::memcmp(p.data(), q.data(), p.size() * sizeof(float)) != 0) FAIL("outputs differ");
      const std::size_t row_floats = p.size() / 2 / x.size();
      for (std::size_t r = 0; r < x.size(); ++r) {
        if (x[r] == nullptr) {  // an empty row attends to nothing
          for (std::size_t f = 0; f < row_floats; ++f)
            if (p[r * row_floats + f] != 0) FAIL("an empty row has an output");
          continue;
        }
        tokens += setup.tokens;
        if (i % 16 != 0) continue;
        REQUIRE(pair.a.resident(*x[r]) == pair.b.resident(*y[r]));
        fm::sequence_info info;
        REQUIRE(pair.a.store->info(x[r]->handle, &info) == status::ok);
        different_sets += info.resident_chunks < info.complete_chunks;
      }
    }
    CHECK(tokens > setup.steps);
    CHECK(pair.joined > setup.steps / 200);
    CHECK(pair.left > setup.steps / 400);
    CHECK(different_sets > 0);  // selection really left chunks out
    CHECK(pair.b.select->counters().refreshes == pair.a.select->counters().refreshes);
    CHECK(pair.a.select->counters().refreshes > setup.steps / 16);
    CHECK(pair.a.select->counters().refreshes_failed == 0);
    CHECK(pair.a.store->counters().faults == 0);
    CHECK(pair.b.store->counters().faults == 0);
  }
}

TEST_CASE("a decode step leaves the store as the same tokens through append() and observe() do",
          "[gpu][step]") {
  REQUIRE_GPU();
  const bool own_keys = GENERATE(false, true);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(own_keys, seed);
  const number_pool pool(seed);
  world_options o;
  o.rows = 1;
  o.own_keys = own_keys;
  world stepped(pool, o, seed), appended(pool, o, seed);
  auto x = stepped.open(), y = appended.open();
  stepped.prefill(x, 37, 5);
  appended.prefill(y, 37, 5);
  const auto g = geometry();
  for (std::uint64_t i = 0; i < 200; ++i) {
    CAPTURE(i);
    REQUIRE(stepped.decode({&x}, i) == status::ok);
    // The same numbers as feed() takes, one token through the calls of a prompt.
    const fm::batch_item item{y.handle, y.tokens, 1};
    const fm::batch batch(&item, 1);
    const auto* hidden = pool.halves(i, g.layers * hidden_size);
    const auto* k = pool.halves(i + 2, g.layers * g.kv_heads * g.key_dim);
    const auto* v = pool.floats(i + 3, g.layers * g.kv_heads * g.value_dim);
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      REQUIRE(appended.select->observe(
                  batch, layer,
                  fm::const_tensor<2>(hidden + layer * hidden_size, fm::dtype::bf16, 1, hidden_size),
                  appended.stream.ref()) == status::ok);
      REQUIRE(appended.store->append(batch, layer,
                                     fm::const_tensor<3>(k + layer * g.kv_heads * g.key_dim, fm::dtype::bf16,
                                                         1, g.kv_heads, g.key_dim),
                                     fm::const_tensor<3>(v + layer * g.kv_heads * g.value_dim, fm::dtype::f32,
                                                         1, g.kv_heads, g.value_dim),
                                     appended.stream.ref()) == status::ok);
    }
    if (own_keys && (y.tokens + 1) % 4 == 0)
      for (std::int32_t s = 0; s < g.index_keys.lanes; ++s)
        REQUIRE(appended.store->append_index_keys(
                    y.handle, s, y.tokens / 4,
                    fm::view<const std::byte, 2>(pool.keys(i + 4, 2) + s * 132, 1, 132),
                    appended.stream.ref()) == status::ok);
    ++y.tokens;
    REQUIRE(fm::select_chunks(*appended.select, batch, appended.stream.ref()) == status::ok);
    REQUIRE(stepped.resident(x) == appended.resident(y));
  }
  CHECK(stepped.contents(x) == appended.contents(y));
  CHECK(stepped.select->counters().refreshes == appended.select->counters().refreshes);
}

TEST_CASE("sixty-four sequences that join and leave, refreshes overlapped, keep their data apart",
          "[gpu][step]") {
  REQUIRE_GPU();
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const number_pool pool(seed);
  world_options first;
  first.rows = 64;
  first.select.apply = fm::apply_mode::overlapped;
  first.select.max_staleness = 3;
  world_options second = first;
  second.captured = true;
  second.select.late = fm::late_policy::keep;
  pair_of_worlds pair(pool, first, second, seed);
  for (std::size_t row = 0; row < 64; ++row) pair.join(row, 1000 + row);
  // Sets may differ between the two, by when copies land; what is stored must not.
  for (int i = 0; i < 400; ++i) {
    pair.churn(std::uint64_t(i), 300);
    REQUIRE(pair.a.decode(pair.rows(pair.in_a), std::uint64_t(i)) == status::ok);
    REQUIRE(pair.b.decode(pair.rows(pair.in_b), std::uint64_t(i)) == status::ok);
  }
  for (std::size_t row = 0; row < 64; ++row)
    if (pair.in_a[row] != nullptr) pair.leave(row);
  for (world* w : {&pair.a, &pair.b}) {
    const auto c = w->store->counters();
    CHECK(c.faults == 0);
    CHECK(c.selected == c.hits + c.recalled + c.refused);
    CHECK(c.recalled > 0);
    CHECK(w->select->counters().refreshes > 400);
    CHECK(w->select->counters().refreshes_failed == 0);
    CHECK(w->store->usage().sequences == 0);
  }
  CHECK(pair.a.select->counters().max_staleness <= 4);
}
