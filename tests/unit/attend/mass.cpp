// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

/// The definition: per chunk the largest weight, summed over its entries, that any row gives it.
std::vector<double> expected_mass(attend_problem& p, std::size_t chunks) {
  const auto want = p.expected();
  std::vector<double> mass(chunks);
  for (std::size_t r = 0; r < want.rows.size(); ++r) {
    std::vector<double> sums(chunks);
    for (std::size_t e = 0; e < want.entries[r].size(); ++e) {
      sums[std::size_t(want.entries[r][e] / p.shape.entries_per_chunk)] += want.rows[r].weights[e];
    }
    for (std::size_t c = 0; c < chunks; ++c) mass[c] = std::max(mass[c], sums[c]);
  }
  return mass;
}

struct mass_call {
  attend_problem problem;
  attend_output attention;
  std::vector<float> mass;
  fault error;
  batch_item item;
  std::int32_t layer = 1;
  const_tensor<3> q;
  view<float, 2> lse;
  attend_options options;
  view<float, 1> mass_view;

  mass_call(const attend_shape& s, std::int64_t length, std::int32_t tokens, double share, bool more)
      : problem(s, fresh_seed()) {
    if (more) {
      problem.sinks.assign(std::size_t(problem.query_heads), 1.5f);
      problem.options.logit_soft_cap = 2;
    }
    const auto handle = problem.add(length, tokens);
    if (share < 1) problem.drop_chunks(handle, share);
    attention = problem.run();
    mass.assign(std::size_t(s.geometry().chunks_for(length)), 7);
    item = problem.items[0];
    q = problem.q_tensor();
    lse = view<float, 2>(attention.lse.data(), tokens, problem.query_heads);
    options = problem.options;
    options.error = &error;
    mass_view = view<float, 1>(mass.data(), mass.size());
  }

  status run(bool accumulate = false) {
    return chunk_attention_mass(problem.store, item, layer, q, lse, options, mass_view, accumulate);
  }
};

}  // namespace

TEST_CASE("chunk mass is the largest weight that any row gives a chunk", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto per_chunk = GENERATE(1, 7, 64, 150);
  const auto share = GENERATE(1.0, 0.5, 0.0);
  const auto more = GENERATE(false, true);
  attend_shape s;
  s.type = type;
  s.entries_per_chunk = per_chunk;
  s.group = 3;
  s.key_dim = 80;
  mass_call c(s, 333, 3, share, more);
  CAPTURE(to_string(type), per_chunk, share, more, c.item.position);
  REQUIRE(c.run() == status::ok);
  const auto want = expected_mass(c.problem, c.mass.size());
  for (std::size_t i = 0; i < want.size(); ++i)
    CHECK(double(c.mass[i]) == Approx(want[i]).epsilon(1e-4).margin(1e-7));

  const auto serial = c.mass;
  thread_crowd crowd;
  c.options.threads = crowd.hook();
  REQUIRE(c.run() == status::ok);
  CHECK(c.mass == serial);
}

TEST_CASE("accumulating keeps the larger mass of each chunk", "[attend]") {
  mass_call c({}, 100, 1, 0.6, false);
  REQUIRE(c.run() == status::ok);
  const auto found = c.mass;
  for (std::size_t i = 0; i < c.mass.size(); ++i) c.mass[i] = i % 2 != 0 ? 2.0f : 0.0f;
  REQUIRE(c.run(true) == status::ok);
  for (std::size_t i = 0; i < c.mass.size(); ++i) CHECK(c.mass[i] == (i % 2 != 0 ? 2.0f : found[i]));
}

TEST_CASE("chunk mass of a NaN key is NaN", "[attend]") {
  mass_call c({}, 100, 1, 1, false);
  std::memset(c.problem.store.key_row(c.item.sequence, 1, 1, 20), 0xff, 2);
  REQUIRE(c.run() == status::ok);
  for (std::size_t i = 0; i < c.mass.size(); ++i) CHECK(std::isnan(c.mass[i]) == (i == 1));
}

TEST_CASE("chunk mass refuses bad input and leaves the masses alone", "[attend]") {
  mass_call c({}, 100, 2, 1, false);
  const auto check = [&](status expected) {
    CHECK(c.run() == expected);
    CHECK(c.error.code == expected);
    CHECK(c.mass == std::vector<float>(c.mass.size(), 7));
  };
  SECTION("layer") {
    c.layer = 2;
    check(status::out_of_range);
  }
  SECTION("sequence") {
    c.item.sequence.generation += 1;
    check(status::stale_sequence);
  }
  SECTION("position") {
    c.item.position += 1;
    check(status::out_of_order);
  }
  SECTION("tokens") {
    c.item.num_tokens = 0;
    check(status::bad_argument);
  }
  SECTION("tokens of q") {
    c.q.shape[0] = 1;
    check(status::bad_shape);
  }
  SECTION("dtype of q") {
    c.q.type = dtype::f16;
    check(status::bad_dtype);
  }
  SECTION("extents of lse") {
    const int d = GENERATE(0, 1);
    c.lse.shape[d] -= 1;
    check(status::bad_shape);
  }
  SECTION("extent of mass") {
    c.mass_view.shape[0] -= 1;
    check(status::bad_shape);
  }
  SECTION("missing memory") {
    const int which = GENERATE(0, 1, 2);
    if (which == 0) c.q.data = nullptr;
    if (which == 1) c.lse.data = nullptr;
    if (which == 2) c.mass_view.data = nullptr;
    check(status::null_data);
  }
  SECTION("level-2 lists") {
    const std::int32_t list[2] = {};
    c.options.entries = view<const std::int32_t, 2>(list, 2, 1);
    check(status::unsupported);
  }
}
