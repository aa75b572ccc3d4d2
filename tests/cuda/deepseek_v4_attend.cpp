// SPDX-License-Identifier: MIT
#include <iostream>
#include <map>

#include "tests/cuda/deepseek_v4_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

namespace {

// Weights and outputs are rounded to bf16, off by up to 2^-8 each and by much less on average.
constexpr double out_tolerance = 0x1p-7, norm_tolerance = 4e-3, lse_tolerance = 1e-5;

/// Every way to cut, and the kernel for other devices.
std::vector<v4::attend_plan> all_plans(const v4::attend_shape& shape) {
  std::vector<v4::attend_plan> plans;
  v4::attend_plan plan = v4::plan_attend(shape);
  if (plan.tensor_cores) {
    for (const std::int32_t splits : {1, 2, 3, 4, 5, 6, 7, 8}) {
      plan.splits = splits;
      for (const std::int32_t dim_splits : {1, 2, 4}) {
        plan.dim_splits = dim_splits;
        plans.push_back(plan);
      }
    }
  }
  plan.splits = plan.dim_splits = 1;
  plan.tensor_cores = false;
  plans.push_back(plan);
  return plans;
}

double worst_out = 0, worst_norm = 0, worst_lse = 0;

/// By every plan.
void check(v4_problem& problem) {
  const auto expected = problem.expect();
  for (const v4::attend_plan& plan : all_plans(problem.shape())) {
    problem.run(plan);
    const auto errors = problem.compare(expected);
    CAPTURE(plan.splits, plan.dim_splits, plan.tensor_cores, problem.heads, errors.out, errors.lse);
    CHECK(errors.out < out_tolerance);
    CHECK(errors.norm < norm_tolerance);
    CHECK(errors.lse < lse_tolerance);
    worst_out = std::max(worst_out, errors.out);
    worst_norm = std::max(worst_norm, errors.norm);
    worst_lse = std::max(worst_lse, errors.lse);
  }
}

}  // namespace

TEST_CASE("V4 attention agrees with the reference for every number of entries", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("entry counts"));
  for (const std::int32_t heads : {64, 128}) {
    for (const std::int32_t per_page : {64, 2}) {
      v4_problem problem(2, heads, 128, 1024, per_page, random);
      for (const std::int32_t count : {0, 1, 5, 63, 64, 65, 128, 640, 1152}) {
        problem.use_sinks = count % 2 == 1;
        problem.fill(std::min(count, 128), std::max(0, count - 128), true, random);
        CAPTURE(heads, per_page, count);
        check(problem);
      }
    }
  }
  std::cout << "largest error: out " << worst_out << " of the mass, by norm " << worst_norm << ", lse "
            << worst_lse << std::endl;
}

TEST_CASE("V4 attention over unequal rows, one source alone, and padded lists", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("unequal rows"));
  v4_problem problem(13, 64, 128, 512, 64, random, 3);
  problem.use_sinks = true;
  problem.fill(128, 512, false, random);
  check(problem);
  SECTION("window only") { problem.fill(128, 0, false, random); }
  SECTION("selected only") { problem.fill(0, 512, false, random); }
  SECTION("all padding") {
    std::fill(problem.window.entries.begin(), problem.window.entries.end(), -1);
    std::fill(problem.selected.entries.begin(), problem.selected.entries.end(), -1);
    problem.use_sinks = false;
  }
  SECTION("padding and numbers outside the pool in between") {
    for (auto* list : {&problem.window, &problem.selected}) {
      for (auto& e : list->entries) {
        if (random() % 3 == 0) e = random() % 2 == 0 ? -1 : 1 << 30;
      }
    }
  }
  SECTION("counts beyond the capacity and below 0") {
    for (auto& c : problem.window.counts) c = 1 << 20;
    for (auto& c : problem.selected.counts) c = -5;
  }
  problem.window.upload();
  problem.selected.upload();
  check(problem);
}

TEST_CASE("V4 attention under sinks of infinity is zero, by every plan", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("infinite sinks"));
  v4_problem problem(3, 64, 128, 256, 64, random);
  problem.fill(128, 256, true, random);
  problem.use_sinks = true;
  problem.device_sinks = device_array<float>(std::vector<float>(64, INFINITY));
  for (const v4::attend_plan& plan : all_plans(problem.shape())) {
    problem.run(plan);
    CAPTURE(plan.splits, plan.dim_splits, plan.tensor_cores);
    const auto out = problem.out.get();
    const auto lse = problem.lse.get();
    CHECK(std::all_of(out.begin(), out.end(), [](auto x) { return reference::bf16_value(x) == 0; }));
    CHECK(std::all_of(lse.begin(), lse.end(), [](float x) { return x == INFINITY; }));
  }
}

TEST_CASE("V4 attention with sinks and values at the edges", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("edges"));
  v4_problem problem(3, 64, 128, 256, 64, random);
  problem.use_sinks = true;
  problem.sinks = std::vector<float>(64, 0);
  const float edges[] = {-INFINITY, -1e30f, 1e30f, 88.0f, -200.0f, 0.0f};
  for (std::size_t h = 0; h < 64; ++h) problem.sinks[h] = edges[h % 6];
  problem.device_sinks = device_array<float>(problem.sinks);
  SECTION("scales of every size") {
    std::normal_distribution<float> normal;
    for (std::int64_t e = 0; e < problem.pool_entries(); ++e) {
      std::vector<float> row(512);
      // Every group of an entry has its own size, up to 2^40; the largest decide the logits.
      for (std::size_t i = 0; i < 512; ++i) {
        row[i] =
            i < 448 ? normal(random) * std::exp2(static_cast<float>(int(i / 64) * 8) - 16) : normal(random);
      }
      problem.selected_pages.put(e, row);
    }
    problem.selected_pages.upload();
    for (auto& x : problem.q)
      x = reference::bf16_bits(static_cast<float>(reference::bf16_value(x)) * 0x1p-38f);
    problem.device_q = device_array<std::uint16_t>(problem.q);
  }
  SECTION("nothing to attend to") { problem.fill(0, 0, true, random); }
  SECTION("one entry holds all weight") {
    std::vector<float> row(512);
    for (std::size_t i = 0; i < 512; ++i)
      row[i] = 300.0f * static_cast<float>(reference::bf16_value(problem.q[i]));
    for (std::int64_t e = 0; e < problem.pool_entries(); e += 7) problem.selected_pages.put(e, row);
    problem.selected_pages.upload();
  }
  problem.fill(100, 250, false, random);
  check(problem);
}

TEST_CASE("V4 attention: a group that was not finite reads as NaN", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("NaN"));
  v4_problem problem(2, 64, 128, 128, 64, random);
  std::vector<float> row(512, 1.0f);
  row[70] = INFINITY;
  problem.window_pages.put(3, row);
  problem.window_pages.upload();
  problem.fill(0, 100, true, random);
  problem.window.entries[0] = 3;
  problem.window.counts[0] = 1;
  problem.window.upload();
  problem.run(v4::plan_attend(problem.shape()));
  const auto out = problem.out.get();
  CHECK(std::isnan(reference::bf16_value(out[0])));
  CHECK(std::isnan(reference::bf16_value(out[70])));
  CHECK(!std::isnan(reference::bf16_value(out[64 * 512])));
}

TEST_CASE("V4 attention does not depend on where entries lie or what else is in the batch", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("places"));
  v4_problem problem(5, 64, 128, 512, 64, random);
  problem.fill(128, 512, false, random);
  for (const v4::attend_plan& plan : all_plans(problem.shape())) {
    problem.run(plan);
    const auto first = problem.out.get();
    const auto first_lse = problem.lse.get();
    problem.run(plan);
    CHECK(problem.out.get() == first);

    // The same entries, elsewhere: pages of 64 become pages of 2 found through a table, in reverse.
    const std::int64_t total = problem.pool_entries();
    v4_pages moved(2, total / 2, random);
    v4_lists lists(problem.rows, problem.selected.capacity);
    lists.entries = problem.selected.entries;
    lists.counts = problem.selected.counts;
    for (auto& e : lists.entries) e = e < 0 ? e : static_cast<std::int32_t>(total - 1 - e);
    for (std::int64_t e = 0; e < total; ++e) {
      reference::v4_entry bytes;
      const std::uint8_t* page =
          problem.selected_pages.host.data() + e / 64 * problem.selected_pages.page_stride;
      std::memcpy(bytes.row.data(), page + v4::row_offset(static_cast<std::int32_t>(e % 64)), 576);
      std::memcpy(bytes.scales.data(), page + v4::scale_offset(64, static_cast<std::int32_t>(e % 64)), 8);
      moved.put(total - 1 - e, bytes);
    }
    moved.upload();
    lists.upload();
    std::vector<const std::byte*> table;
    for (std::int64_t p = 0; p < moved.num_pages; ++p) {
      table.push_back(reinterpret_cast<const std::byte*>(moved.device.data()) + p * moved.page_stride - 32);
    }
    const device_array<const std::byte*> device_table(table);
    v4::page_pool pool;
    pool.table = device_table.data();
    pool.table_offset = 32;
    pool.num_pages = moved.num_pages;
    pool.entries_per_page = 2;
    must(cudaMemset(problem.out.data(), 0xff, problem.out.bytes()));
    must(cudaDeviceSynchronize());
    flashmemory::attend_options options;
    options.lse = view<float, 2>(problem.lse.data(), problem.rows, problem.heads);
    options.scratch = {problem.scratch.data(), problem.scratch.bytes()};
    REQUIRE(v4::sparse_attend(plan, problem.window.source(problem.window_pages.pool()), lists.source(pool),
                              const_tensor<3>(problem.device_q.data(), dtype::bf16, 5, 64, 512),
                              tensor<3>(problem.out.data(), dtype::bf16, 5, 64, 512), options,
                              problem.stream.ref()) == status::ok);
    problem.stream.wait();
    CHECK(problem.out.get() == first);
    CHECK(problem.lse.get() == first_lse);

    // Alone in the batch.
    v4_lists only_window(1, 128), only_selected(1, 512);
    std::copy_n(problem.window.entries.begin() + 3 * 128, 128, only_window.entries.begin());
    std::copy_n(problem.selected.entries.begin() + 3 * 512, 512, only_selected.entries.begin());
    only_window.counts[0] = problem.window.counts[3];
    only_selected.counts[0] = problem.selected.counts[3];
    only_window.upload();
    only_selected.upload();
    options.lse = {};
    REQUIRE(
        v4::sparse_attend(plan, only_window.source(problem.window_pages.pool()),
                          only_selected.source(problem.selected_pages.pool()),
                          const_tensor<3>(problem.device_q.data() + 3 * 64 * 512, dtype::bf16, 1, 64, 512),
                          tensor<3>(problem.out.data(), dtype::bf16, 1, 64, 512), options,
                          problem.stream.ref()) == status::ok);
    problem.stream.wait();
    const auto alone = problem.out.get();
    CHECK(std::equal(alone.begin(), alone.begin() + 64 * 512, first.begin() + 3 * 64 * 512));
  }
}

TEST_CASE("a captured V4 step gives the eager bytes, also after its lists have changed", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("graph"));
  v4_problem problem(6, 64, 128, 512, 64, random);
  problem.use_sinks = true;
  problem.fill(128, 512, false, random);
  const v4::attend_plan plan = v4::plan_attend(problem.shape());
  problem.run(plan);

  cudaGraph_t graph;
  cudaGraphExec_t exec;
  must(cudaStreamBeginCapture(problem.stream.get(), cudaStreamCaptureModeThreadLocal));
  REQUIRE(problem.enqueue(plan) == status::ok);
  must(cudaStreamEndCapture(problem.stream.get(), &graph));
  must(cudaGraphInstantiate(&exec, graph, 0));
  for (int step = 0; step < 4; ++step) {
    v4_lists window(6, 128), selected(6, 512);
    for (std::int64_t r = 0; r < 6; ++r) {
      window.fill(r, static_cast<std::int32_t>(random() % 129), 512, random);
      selected.fill(r, step == 2 ? 0 : static_cast<std::int32_t>(random() % 513), problem.pool_entries(),
                    random);
    }
    problem.window.device_entries.put(window.entries);
    problem.window.device_counts.put(window.counts);
    problem.selected.device_entries.put(selected.entries);
    problem.selected.device_counts.put(selected.counts);
    problem.run(plan);
    const auto eager = problem.out.get();
    const auto eager_lse = problem.lse.get();
    must(cudaMemset(problem.out.data(), 0xff, problem.out.bytes()));
    must(cudaDeviceSynchronize());
    must(cudaGraphLaunch(exec, problem.stream.get()));
    problem.stream.wait();
    CHECK(problem.out.get() == eager);
    CHECK(problem.lse.get() == eager_lse);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

TEST_CASE("V4 attention refuses what cannot work and enqueues nothing", "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(1);
  v4_problem problem(2, 64, 128, 64, 64, random);
  problem.fill(10, 10, true, random);
  const v4::attend_plan plan = v4::plan_attend(problem.shape());
  must(cudaMemset(problem.out.data(), 0x5a, problem.out.bytes()));
  const auto before = problem.out.get();
  const auto window = problem.window.source(problem.window_pages.pool());
  const auto selected = problem.selected.source(problem.selected_pages.pool());
  const const_tensor<3> q(problem.device_q.data(), dtype::bf16, 2, 64, 512);
  const tensor<3> out(problem.out.data(), dtype::bf16, 2, 64, 512);
  fault error;
  const auto call = [&](v4::entry_source w, const_tensor<3> query, tensor<3> result) {
    flashmemory::attend_options options;
    options.error = &error;
    options.scratch = {problem.scratch.data(), problem.scratch.bytes()};
    return v4::sparse_attend(plan, w, selected, query, result, options, problem.stream.ref());
  };
  auto wrong_q = q;
  wrong_q.shape[1] = 63;
  CHECK(call(window, wrong_q, out) == status::bad_shape);
  wrong_q = q;
  wrong_q.type = dtype::f32;
  CHECK(call(window, wrong_q, out) == status::bad_dtype);
  wrong_q = q;
  wrong_q.data = nullptr;
  CHECK(call(window, wrong_q, out) == status::null_data);
  wrong_q = q;
  wrong_q.shape[0] = 3;
  CHECK(call(window, wrong_q, out) == status::bad_shape);
  auto wrong_out = out;
  wrong_out.stride[1] = 1024;
  CHECK(call(window, q, wrong_out) == status::bad_shape);
  auto pages = window;
  pages.pool.entries_per_page = 100;
  CHECK(call(pages, q, out) == status::bad_argument);
  pages = window;
  pages.pool.page_stride = 1000;
  CHECK(call(pages, q, out) == status::bad_argument);
  CHECK(error.expected == 149760);
  pages = window;
  pages.pool.pages = nullptr;
  CHECK(call(pages, q, out) == status::null_data);
  pages = window;
  pages.entries.shape[0] = 1;
  CHECK(call(pages, q, out) == status::bad_shape);
  v4::attend_plan many = plan;
  many.splits = 9;
  flashmemory::attend_options few;
  CHECK(v4::sparse_attend(many, window, selected, q, out, few, problem.stream.ref()) == status::bad_argument);
  many.splits = 2;
  many.dim_splits = 3;
  CHECK(v4::sparse_attend(many, window, selected, q, out, few, problem.stream.ref()) == status::bad_argument);
  many.dim_splits = 2;
  if (many.tensor_cores) {
    CHECK(v4::sparse_attend(many, window, selected, q, out, few, problem.stream.ref()) ==
          status::workspace_small);
  }
  v4::attend_shape shape = problem.shape();
  shape.heads = 32;
  CHECK_THROWS(v4::plan_attend(shape));
  problem.stream.wait();
  CHECK(problem.out.get() == before);
}

TEST_CASE("V4 plans split rows only while that helps, and say what scratch it takes", "[cuda][v4]") {
  REQUIRE_GPU();
  v4::attend_shape shape;
  std::int32_t last = 8, last_dims = 4;
  for (const std::int64_t rows : {1, 20, 40, 70, 500}) {
    shape.rows = rows;
    const v4::attend_plan plan = v4::plan_attend(shape);
    CAPTURE(rows, plan.splits, plan.tensor_cores);
    CHECK(plan.splits >= 1);
    CHECK(plan.splits <= last);
    last = plan.splits;
    CHECK(plan.dim_splits >= 1);
    CHECK(plan.dim_splits <= last_dims);
    last_dims = plan.dim_splits;
    const bool joins = plan.splits > 1 && plan.dim_splits > 1;
    const std::size_t parts = joins ? static_cast<std::size_t>(rows * plan.splits) : 0;
    CHECK(v4::attend_workspace_bytes(plan) ==
          parts * (65536 + 1024 * static_cast<std::size_t>(plan.dim_splits)));
  }
  CHECK(last == 1);
  shape.max_entries = -1;
  CHECK_THROWS(v4::plan_attend(shape));
}
