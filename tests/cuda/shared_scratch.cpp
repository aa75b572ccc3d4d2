// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/top_k.hpp>
#include <memory>

#include "tests/cuda/attend_problem.hpp"
#include "tests/cuda/deepseek_v4_problem.hpp"
#include "tests/cuda/score_problem.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using namespace flashmemory_test;

namespace {

/// Fills scratch with what another call could have left: zeros, NaNs, small numbers, one number everywhere.
void poison(const device_array<std::byte>& scratch, std::mt19937& random) {
  constexpr int bytes[] = {0x00, 0xff, 0x01, 0x3f, 0x80};
  fill(scratch.data(), bytes[random() % 5], scratch.size());
}

attend_problem problem_of(std::uint32_t seed, fm::dtype type, std::int32_t dim, std::int64_t rows) {
  attend_problem p(seed);
  auto& g = p.shape.geometry;
  g.layers = 1;
  g.type = type;
  g.key_dim = g.value_dim = dim;
  g.kv_heads = 8;
  g.entries_per_chunk = 8;
  p.shape.max_chunks = 20;
  p.shape.query_heads = 16;
  p.shape.rows = rows;
  for (std::int64_t r = 0; r < rows; ++r) p.entries.push_back(std::int64_t(p.random() % 161));
  p.entries[0] = 160;
  p.draw();
  p.place(seed);
  return p;
}

cu::attend_plan cut_into(cu::attend_plan plan, std::int32_t splits) {
  plan.chunks_per_split = std::int32_t((plan.shape.max_chunks + splits - 1) / splits);
  plan.splits = std::int32_t((plan.shape.max_chunks + plan.chunks_per_split - 1) / plan.chunks_per_split);
  return plan;
}

bool all_zero(const device_array<std::uint32_t>& counters) {
  const auto words = counters.get();
  return std::all_of(words.begin(), words.end(), [](std::uint32_t word) { return word == 0; });
}

}  // namespace

TEST_CASE("plans of all shapes use one scratch and one set of counters in turn, whatever lies in the scratch",
          "[gpu][attend]") {
  REQUIRE_GPU();
  const auto type = GENERATE(fm::dtype::bf16, fm::dtype::f16, fm::dtype::f32);
  const std::int32_t dim = GENERATE(64, 128, 80);
  const auto seed = fresh_seed();
  CAPTURE(seed, fm::to_string(type), dim);
  std::mt19937 random(seed);
  struct turn {
    std::size_t problem;
    cu::attend_plan plan;
    std::vector<std::byte> expected;
  };
  std::vector<attend_problem> problems;
  std::vector<turn> turns;
  std::size_t bytes = 0;
  const device_stream stream;
  for (const std::int64_t rows : {1, 11, repeats(64, 16)}) {
    problems.push_back(problem_of(seed + std::uint32_t(rows), type, dim, rows));
    attend_problem& p = problems.back();
    const auto natural = cu::plan_attend(p.shape);
    for (const auto& plan : {natural, cut_into(natural, 2), cut_into(natural, 3), cut_into(natural, 20)}) {
      p.make_scratch(plan);
      REQUIRE(p.run(plan, stream) == fm::status::ok);
      stream.wait();
      const auto worst = compare(p);
      CHECK(worst.value <= tolerance_of(plan));
      CHECK(worst.lse <= 1e-5);
      turns.push_back({problems.size() - 1, plan, p.out.get()});
      bytes = std::max(bytes, cu::attend_workspace_bytes(plan));
    }
  }
  REQUIRE(bytes > 0);
  device_array<std::byte> scratch(bytes);
  device_array<std::uint32_t> counters(std::vector<std::uint32_t>(cu::attend_counters, 0));
  for (int round = 0; round < repeats(20, 3); ++round) {
    std::shuffle(turns.begin(), turns.end(), random);
    for (const turn& t : turns) {
      attend_problem& p = problems[t.problem];
      CAPTURE(round, p.num_rows(), t.plan.splits);
      poison(scratch, random);
      fill(p.out.data(), 0xff, p.out.size());
      std::swap(p.scratch, scratch);
      std::swap(p.counters, counters);
      REQUIRE(p.run(t.plan, stream) == fm::status::ok);
      stream.wait();
      std::swap(p.scratch, scratch);
      std::swap(p.counters, counters);
      REQUIRE(p.out.get() == t.expected);
      REQUIRE(all_zero(counters));
    }
  }
}

TEST_CASE("a row longer than its plan leaves no counter behind", "[gpu][attend]") {
  REQUIRE_GPU();
  const auto type = GENERATE(fm::dtype::bf16, fm::dtype::f32);
  const auto seed = fresh_seed();
  CAPTURE(seed, fm::to_string(type));
  attend_problem p = problem_of(seed, type, 64, 3);
  cu::attend_shape shorter = p.shape;
  shorter.max_chunks = 12;
  const auto plan = cut_into(cu::plan_attend(shorter), 4);
  p.make_scratch(plan);
  const device_stream stream;
  REQUIRE(p.run(plan, stream) == fm::status::ok);
  stream.wait();
  CHECK(all_zero(p.counters));
  for (auto& entries : p.entries) entries = std::min<std::int64_t>(entries, 12 * 8);
  const auto worst = compare(p);  // of the chunks that it planned for
  CHECK(worst.value <= tolerance_of(plan));
}

TEST_CASE("calls of different kinds use one scratch in turn, whatever lies in it", "[gpu][attend][select]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::mt19937_64 random64(seed);

  attend_problem gqa = problem_of(seed, fm::dtype::bf16, 128, 5);
  const auto gqa_plan = cut_into(cu::plan_attend(gqa.shape), 5);
  gqa.make_scratch(gqa_plan);

  v4_problem latent(3, 64, 128, 512, 64, random64);
  latent.fill(128, 512, false, random64);
  v4::attend_plan latent_plan = v4::plan_attend(latent.shape());
  if (latent_plan.tensor_cores) latent_plan.splits = latent_plan.dim_splits = 4;

  score_problem scores;
  scores.options.heads = 8;
  scores.options.above = true;
  for (const std::size_t count : {4000u, 70u, 9001u}) scores.cases.emplace_back(random64, 8, count, true);
  scores.upload(random64);

  std::vector<float> row(40000);
  std::normal_distribution<float> normal;
  for (float& x : row) x = normal(random);
  const device_array<float> device_row(row);
  const device_array<std::int32_t> ids(512), selected(1);
  cu::select_row job;
  job.scores = device_row.data();
  job.count = std::int64_t(row.size());
  job.k = 512;
  job.ids = ids.data();
  job.selected = selected.data();
  const device_array<cu::select_row> jobs(std::vector<cu::select_row>{job});
  const std::size_t top_k_bytes = cu::top_k_workspace_bytes(1, job.count);

  const std::size_t bytes = std::max(
      {gqa.scratch.size(), v4::attend_workspace_bytes(latent_plan), scores.scratch.size(), top_k_bytes});
  device_array<std::byte> scratch(bytes);
  device_array<std::uint8_t> latent_scratch, score_scratch;
  const device_stream stream;
  std::vector<std::vector<std::byte>> expected(4);
  for (int round = 0; round < repeats(40, 4); ++round) {
    std::vector<int> order{0, 1, 2, 3};
    std::shuffle(order.begin(), order.end(), random);
    for (const int kind : order) {
      CAPTURE(round, kind);
      poison(scratch, random);
      const fm::workspace shared{scratch.data(), scratch.size()};
      std::vector<std::byte> got;
      const auto add = [&](const auto& list) {
        const auto* const from = reinterpret_cast<const std::byte*>(list.data());
        got.insert(got.end(), from, from + list.size() * sizeof(list[0]));
      };
      if (kind == 0) {
        std::swap(gqa.scratch, scratch);
        REQUIRE(gqa.run(gqa_plan, stream) == fm::status::ok);
        stream.wait();
        std::swap(gqa.scratch, scratch);
        add(gqa.out.get());
      } else if (kind == 1) {
        fm::attend_options options;
        options.scratch = shared;
        REQUIRE(v4::sparse_attend(latent_plan, latent.window.source(latent.window_pages.pool()),
                                  latent.selected.source(latent.selected_pages.pool()),
                                  fm::const_tensor<3>(latent.device_q.data(), fm::dtype::bf16, 3, 64, 512),
                                  fm::tensor<3>(latent.out.data(), fm::dtype::bf16, 3, 64, 512), options,
                                  stream.ref()) == fm::status::ok);
        stream.wait();
        add(latent.out.get());
      } else if (kind == 2) {
        REQUIRE(cu::score(scores.options, scores.jobs.data(), std::int32_t(scores.cases.size()), shared,
                          stream.ref()) == fm::status::ok);
        stream.wait();
        for (const score_case& c : scores.cases) {
          auto list = c.above.get();
          list.resize(std::size_t(c.above_count.get()[0]));  // what lies behind was never written
          add(list);
        }
      } else {
        REQUIRE(cu::select_top_k(jobs.data(), 1, job.count, shared, stream.ref()) == fm::status::ok);
        stream.wait();
        add(ids.get());
      }
      auto& first = expected[std::size_t(kind)];
      if (first.empty()) first = got;
      REQUIRE(got == first);
    }
  }
  CHECK(compare(gqa).value <= tolerance_of(gqa_plan));
  CHECK(all_zero(gqa.counters));
}

TEST_CASE("rows, sinks and lse may be strided", "[gpu][attend]") {
  REQUIRE_GPU();
  const auto type = GENERATE(fm::dtype::bf16, fm::dtype::f32);
  const std::int32_t splits = GENERATE(1, 2, 4);
  const auto seed = fresh_seed();
  CAPTURE(seed, fm::to_string(type), splits);
  attend_problem p = problem_of(seed, type, 64, 4);
  p.with_sinks = true;
  const auto plan = cut_into(cu::plan_attend(p.shape), splits);
  p.make_scratch(plan);
  const device_stream stream;
  REQUIRE(p.run(plan, stream) == fm::status::ok);
  stream.wait();
  const auto dense_out = p.out.get();
  const auto dense_lse = p.lse.get();

  const std::int32_t heads = p.shape.query_heads;
  std::vector<cu::chunk_row> rows;
  for (const auto& row : p.rows.get()) {
    rows.push_back(row);
    rows.push_back({nullptr, 99});  // must not be looked at
  }
  const device_array<cu::chunk_row> device_rows(rows);
  std::vector<float> sinks(std::size_t(3 * heads), NAN);
  for (std::int32_t h = 0; h < heads; ++h) sinks[std::size_t(3 * h)] = p.sinks[std::size_t(h)];
  const device_array<float> device_sinks(sinks);
  const std::int64_t lse_row = 2 * heads + 5;
  const device_array<float> lse(std::size_t(4 * lse_row));
  fm::view<const cu::chunk_row, 1> row_view(device_rows.data(), 4);
  row_view.stride[0] = 2;
  fm::attend_options options = p.options();
  options.sink_logits = fm::view<const float, 1>(device_sinks.data(), heads);
  options.sink_logits.stride[0] = 3;
  options.lse = fm::view<float, 2>(lse.data(), 4, heads);
  options.lse.stride[0] = lse_row;
  options.lse.stride[1] = 2;
  fill(p.out.data(), 0xff, p.out.size());
  REQUIRE(cu::sparse_attend(plan, row_view, 0, fm::const_tensor<3>(p.q.data(), type, 4, heads, 64),
                            fm::tensor<3>(p.out.data(), fm::dtype::f32, 4, heads, 64), options,
                            stream.ref()) == fm::status::ok);
  stream.wait();
  CHECK(p.out.get() == dense_out);
  const auto got = lse.get();
  for (std::int64_t at = 0; at < 4 * lse_row; ++at) {
    const std::int64_t row = at / lse_row, head = at % lse_row / 2;
    if (at % lse_row % 2 == 0 && head < heads)
      REQUIRE(got[std::size_t(at)] == dense_lse[std::size_t(row * heads + head)]);
    else
      REQUIRE(std::isnan(got[std::size_t(at)]));
  }
}
