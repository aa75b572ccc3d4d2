// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/score.hpp>
#include <iostream>
#include <limits>

#include "tests/cuda/score_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

namespace {

/// Of the sum of magnitudes. The tensor cores drop what is below about 2^-13 of the largest product at hand.
constexpr double tolerance = 0x1p-9;

void check_logits(const score_case& c, std::mt19937_64& random) {
  const std::vector<float> got = c.logits.get();
  std::size_t wrong = 0, nans = 0;
  double worst = 0;
  const auto look_at = [&](std::size_t i) {
    const reference::scored_key want = c.want(i);
    if (std::isnan(want.logit) && std::isnan(got[i])) return;
    const double error = std::fabs(static_cast<double>(got[i]) - want.logit);
    const double allowed = want.magnitude * tolerance + 1e-6 * std::fabs(static_cast<double>(c.offset));
    if (!(error <= allowed)) ++wrong;
    worst = std::max(worst, error / want.magnitude);
  };
  if (got.size() <= 4097) {
    for (std::size_t i = 0; i < got.size(); ++i) look_at(i);
  } else {
    for (int i = 0; i < 2000; ++i) look_at(random() % got.size());
    for (std::size_t i = 0; i < 70; ++i) look_at(i), look_at(got.size() - 1 - i);
  }
  for (const float logit : got) nans += std::isnan(logit) ? 1 : 0;
  CAPTURE(worst, nans);
  CHECK(wrong == 0);
  for (const float scale : c.scales) nans -= std::isfinite(scale) || nans == 0 ? 0 : 1;
  CHECK(nans == 0);  // every logit was written
}

}  // namespace

TEST_CASE("score() gives the logits of the formula for any length, number of heads and page",
          "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("logits");
  const auto heads = GENERATE(1, 8, 33, 64, 65, 128);
  const auto page_keys = GENERATE(64, 16, 48, 256, 7);
  const auto layout = GENERATE(index_key_layout::planar, index_key_layout::interleaved);
  const bool portable = page_keys == 7 || layout == index_key_layout::interleaved;
  const std::vector<std::size_t> lengths =
      portable ? std::vector<std::size_t>{0, 1, 63, 64, 65, 1000}
               : std::vector<std::size_t>{0, 1, 15, 16, 17, 63, 64, 65, 1000, 4097};
  CAPTURE(seed, heads, page_keys, layout == index_key_layout::planar);
  std::mt19937_64 random(seed + static_cast<std::uint64_t>(heads * 1000 + page_keys));
  score_problem p;
  p.options.heads = heads;
  p.options.keys_per_page = page_keys;
  p.options.layout = layout;
  for (const std::size_t n : lengths) p.cases.emplace_back(random, heads, n, false);
  for (const std::size_t n : lengths) p.cases.emplace_back(random, heads, n / 2 + 1, true);
  p.upload(random);
  p.run();
  for (const score_case& c : p.cases) check_logits(c, random);
}

TEST_CASE("score() gives the logits of the formula where every multiprocessor has many tiles",
          "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("long");
  const auto heads = GENERATE(64, 128);
  const auto num_sms = GENERATE(0, 1, 5);
  CAPTURE(seed, heads, num_sms);
  std::mt19937_64 random(seed);
  score_problem p;
  p.options.heads = heads;
  p.options.num_sms = num_sms;
  p.cases.emplace_back(random, heads, 70001, true);
  p.cases.emplace_back(random, heads, 3, false);
  p.cases.emplace_back(random, heads, 20000, false);
  p.upload(random);
  p.run();
  for (const score_case& c : p.cases) check_logits(c, random);
}

TEST_CASE("score() takes a hundred jobs of unequal lengths", "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("jobs");
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  score_problem p;
  p.options.heads = 64;
  for (int i = 0; i < 100; ++i) {
    const std::size_t n = i % 7 == 3 ? 0 : random() % (std::size_t{1} << random() % 12);
    p.cases.emplace_back(random, 64, n, i % 2 == 0);
  }
  p.upload(random);
  p.run();
  for (const score_case& c : p.cases) check_logits(c, random);
}

TEST_CASE("score() propagates NaN keys and scales, and takes the sign and size of any scale",
          "[score][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("extremes");
  const auto layout = GENERATE(index_key_layout::planar, index_key_layout::interleaved);
  const auto heads = GENERATE(3, 64, 128);
  CAPTURE(seed, heads, layout == index_key_layout::planar);
  std::mt19937_64 random(seed);
  score_problem p;
  p.options.heads = heads;
  p.options.layout = layout;
  p.cases.emplace_back(random, heads, 1000, false);
  score_case& c = p.cases[0];
  c.offset = 0;
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> odd{0.0f, -0.0f, 1e30f, 1e-30f, 1e-42f, -0.01f, -1e20f, inf, -inf, std::nanf("")};
  for (std::size_t i = 0; i < 400; ++i) c.scales[i] = odd[random() % odd.size()];
  for (std::size_t i = 500; i < 600; i += 7) c.keys[i * 128 + random() % 128] = i % 2 ? 0x7f : 0xff;
  p.upload(random);
  p.run();
  const std::vector<float> got = c.logits.get();
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const reference::scored_key want = c.want(i);
    const bool right = std::isnan(want.logit) ? std::isnan(got[i])
                                              : std::fabs(static_cast<double>(got[i]) - want.logit) <=
                                                    want.magnitude * tolerance + 1e-44;
    if (!right && wrong++ < 5) {
      std::cout << "key " << i << " scale " << c.scales[i] << " got " << got[i] << " want " << want.logit
                << '\n';
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("score() reports bad calls and enqueues nothing", "[score][cuda]") {
  REQUIRE_GPU();
  std::mt19937_64 random(1);
  score_problem p;
  p.options.heads = 8;
  p.options.above = true;
  p.cases.emplace_back(random, 8, 64, false);
  p.upload(random);
  const workspace scratch{p.scratch.data(), p.scratch.bytes()};
  const auto call = [&](const score_options& o, const score_job* jobs, std::int32_t n, workspace w,
                        stream_ref s) {
    fault f;
    const status code = cuda::score(o, jobs, n, w, s, &f);
    CHECK(f.code == code);
    return code;
  };
  score_options o = p.options;
  const auto with = [&](auto change) {
    score_options bad = o;
    change(bad);
    return call(bad, p.jobs.data(), 1, scratch, p.stream.ref());
  };
  CHECK(with([](score_options& b) { b.heads = 0; }) == status::bad_argument);
  CHECK(with([](score_options& b) { b.heads = 129; }) == status::bad_argument);
  CHECK(with([](score_options& b) { b.keys_per_page = 0; }) == status::bad_argument);
  CHECK(with([](score_options& b) { b.num_sms = -1; }) == status::bad_argument);
  CHECK(with([](score_options& b) { b.layout = static_cast<index_key_layout>(9); }) == status::bad_argument);
  CHECK(with([](score_options& b) { b.counters = nullptr; }) == status::null_data);
  CHECK(call(o, p.jobs.data(), -1, scratch, p.stream.ref()) == status::bad_argument);
  CHECK(call(o, nullptr, 1, scratch, p.stream.ref()) == status::null_data);
  CHECK(call(o, p.jobs.data(), 1, {}, p.stream.ref()) == status::workspace_small);
  CHECK(call(o, p.jobs.data(), 1, scratch, stream_ref::host()) == status::unsupported);
  CHECK(call(o, nullptr, 0, {}, p.stream.ref()) == status::ok);
  p.stream.wait();
  for (const float logit : p.cases[0].logits.get()) CHECK(std::isnan(logit));
}
