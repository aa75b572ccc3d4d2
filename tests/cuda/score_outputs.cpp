// SPDX-License-Identifier: MIT
#include <limits>

#include "tests/cuda/score_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

namespace {

void check_outputs(const score_case& c, std::int32_t page_keys) {
  CAPTURE(c.count(), c.threshold, page_keys);
  const std::vector<float> logits = c.logits.get();
  CHECK(same_numbers(c.group_max.get(), reference::group_maxima(logits, 16, false)));
  CHECK(same_numbers(c.chunk_max.get(),
                     reference::group_maxima(logits, static_cast<std::size_t>(page_keys), true)));
  const std::vector<std::int32_t> want = reference::above(logits, c.threshold);
  REQUIRE(c.above_count.get()[0] == static_cast<std::int32_t>(want.size()));
  std::vector<std::int32_t> got = c.above.get();
  got.resize(want.size());
  CHECK(got == want);
}

std::vector<std::uint8_t> all_bytes(const score_problem& p) {
  std::vector<std::uint8_t> bytes;
  const auto add = [&](const auto& array) {
    const auto host = array.get();
    const auto* from = reinterpret_cast<const std::uint8_t*>(host.data());
    bytes.insert(bytes.end(), from, from + array.bytes());
  };
  for (const score_case& c : p.cases) {
    add(c.logits), add(c.group_max), add(c.chunk_max), add(c.above_count), add(c.above);
  }
  return bytes;
}

}  // namespace

TEST_CASE("score() reduces and thresholds exactly what its logits are", "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("outputs");
  const auto page_keys = GENERATE(64, 16, 128, 7);
  const auto heads = GENERATE(8, 128);
  CAPTURE(seed, page_keys, heads);
  std::mt19937_64 random(seed);
  score_problem p;
  p.options.heads = heads;
  p.options.keys_per_page = page_keys;
  p.options.chunk_max = p.options.above = true;
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::size_t n : {0, 1, 15, 16, 17, 63, 64, 65, 1000, 0, 9001, 0}) {
    p.cases.emplace_back(random, heads, n, n % 2 == 0);
    score_case& c = p.cases.back();
    if (n == 63) c.threshold = -inf;
    if (n == 64) c.threshold = inf;
    if (n == 65) c.threshold = std::nanf("");
    if (n == 9001) {
      for (std::size_t i = 100; i < 400; i += 3) c.scales[i] = std::nanf("");
      for (std::size_t i = 2000; i < 2064; ++i) c.scales[i] = std::nanf("");
    }
  }
  p.upload(random);
  p.run();
  for (const score_case& c : p.cases) check_outputs(c, page_keys);

  SECTION("and gives the same bytes again, on any number of multiprocessors") {
    const std::vector<std::uint8_t> first = all_bytes(p);
    for (const int sms : {0, 0, 1, 7, 100}) {
      p.options.num_sms = sms;
      p.run();
      CAPTURE(sms);
      CHECK(all_bytes(p) == first);
    }
  }
}

TEST_CASE("score() compacts long lists over many blocks", "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("lists");
  const auto num_sms = GENERATE(0, 1);  // 1: more tiles than a block remembers in shared memory
  CAPTURE(seed, num_sms);
  std::mt19937_64 random(seed);
  score_problem p;
  p.options.heads = 8;
  p.options.num_sms = num_sms;
  p.options.chunk_max = p.options.above = true;
  for (const std::size_t n : {70001, 5, 200000, 0, 64}) p.cases.emplace_back(random, 8, n, false);
  p.cases[2].threshold = p.cases[2].offset - 1e9f;
  p.upload(random);
  p.run();
  for (const score_case& c : p.cases) check_outputs(c, 64);
}

TEST_CASE("score() leaves out survivors beyond the capacity but counts them", "[score][cuda]") {
  REQUIRE_GPU();
  std::mt19937_64 random(3);
  score_problem p;
  p.options.heads = 8;
  p.options.above = true;
  p.cases.emplace_back(random, 8, 5000, false);
  score_case& c = p.cases[0];
  c.threshold = -1e9f;
  p.upload(random);
  std::vector<score_job> jobs = p.jobs.get();
  jobs[0].above_capacity = 1234;
  p.jobs.put(jobs);
  p.run();
  CHECK(c.above_count.get()[0] == 5000);
  const std::vector<std::int32_t> list = c.above.get();
  for (int i = 0; i < 5000; ++i) REQUIRE(list[static_cast<std::size_t>(i)] == (i < 1234 ? i : -1));
}

TEST_CASE("score() takes the maximum over jobs that name the same chunks", "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("ensemble");
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  score_problem p;
  p.options.heads = 64;
  p.options.chunk_max = true;
  for (int i = 0; i < 3; ++i) p.cases.emplace_back(random, 64, 10000, i == 1);
  p.cases[2].scales[777] = std::nanf("");
  p.upload(random);
  std::vector<score_job> jobs = p.jobs.get();
  for (score_job& job : jobs) job.chunk_max = p.cases[0].chunk_max.data();
  p.jobs.put(jobs);
  p.run();
  std::vector<float> best;
  for (const score_case& c : p.cases) {
    const std::vector<float> one = reference::group_maxima(c.logits.get(), 64, true);
    if (best.empty()) best = one;
    for (std::size_t i = 0; i < best.size(); ++i) {
      if (std::isnan(one[i]) || one[i] > best[i]) best[i] = one[i];
    }
  }
  CHECK(std::isnan(best[777 / 64]));
  CHECK(same_numbers(p.cases[0].chunk_max.get(), best));
}

TEST_CASE("a captured score() sees new lengths and gives the bytes of a direct call", "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("graph");
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  score_problem p;
  p.options.heads = 64;
  p.options.chunk_max = p.options.above = true;
  for (const std::size_t n : {20000, 300, 64}) p.cases.emplace_back(random, 64, n, n == 300);
  p.upload(random);
  const std::vector<score_job> full = p.jobs.get();

  cudaGraph_t graph;
  cudaGraphExec_t executable;
  must(cudaStreamBeginCapture(p.stream.get(), cudaStreamCaptureModeGlobal));
  REQUIRE(p.enqueue() == status::ok);
  must(cudaStreamEndCapture(p.stream.get(), &graph));
  must(cudaGraphInstantiate(&executable, graph, 0));
  for (const int divide : {1, 3, 1000, 2}) {
    std::vector<score_job> jobs = full;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const auto keys = static_cast<std::int64_t>(p.cases[i].count()) / divide;
      jobs[i].count = keys;
      if (jobs[i].device_count != nullptr) p.cases[i].device_count.put({keys});
    }
    p.jobs.put(jobs);
    const auto clear = [&] {
      for (score_case& c : p.cases) {
        must(cudaMemset(c.logits.data(), 0xff, c.logits.bytes()));
        must(cudaMemset(c.chunk_max.data(), 0xff, c.chunk_max.bytes()));
        must(cudaMemset(c.above.data(), 0xff, c.above.bytes()));
      }
      must(cudaDeviceSynchronize());
    };
    clear();
    p.run();
    const std::vector<std::uint8_t> direct = all_bytes(p);
    clear();
    must(cudaGraphLaunch(executable, p.stream.get()));
    p.stream.wait();
    CHECK(all_bytes(p) == direct);
  }
  must(cudaGraphExecDestroy(executable));
  must(cudaGraphDestroy(graph));
}
