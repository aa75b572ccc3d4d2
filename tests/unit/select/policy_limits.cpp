// SPDX-License-Identifier: MIT
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/select/policy.hpp>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/catch.hpp"
#include "tests/reference/selection.hpp"

namespace fm = flashmemory;
using fm::selection_mode;

namespace {

fm::kv_geometry geometry() {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = 1;
  g.key_dim = 16;
  g.value_dim = 16;
  g.type = fm::dtype::f32;
  return g;
}

const double nan_value = std::numeric_limits<double>::quiet_NaN();
const double infinite = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("log odds of a probability are zero at a half, symmetric, and infinite at the ends", "[policy]") {
  CHECK(fm::log_odds(0.5) == 0);
  CHECK(fm::log_odds(0.25) == Approx(-std::log(3.0)));
  CHECK(fm::log_odds(0.75) == -fm::log_odds(0.25));
  CHECK(fm::log_odds(0) == -std::numeric_limits<float>::infinity());
  CHECK(fm::log_odds(1) == std::numeric_limits<float>::infinity());
  CHECK(std::isnan(fm::log_odds(1.5)));
}

TEST_CASE("the budget of a fraction is rounded half to even and never below sink and recent", "[policy]") {
  fm::selection_policy p;
  CHECK(fm::budget_chunks(p, geometry(), 60) == 8);
  p.budget_fraction = GENERATE(0.0625, 0.1, 0.135, 0.5, 1.0);
  for (std::int64_t n = 0; n < 400; ++n) {
    CAPTURE(p.budget_fraction, n);
    const std::int64_t wanted =
        std::min(n, std::max<std::int64_t>(3, reference::round_even(p.budget_fraction * double(n))));
    REQUIRE(fm::budget_chunks(p, geometry(), n) == wanted);
  }
}

TEST_CASE("of several budgets the smallest holds, and without any all chunks are in force", "[policy]") {
  fm::selection_policy p;
  const auto chunk = fm::chunk_layout(geometry()).chunk_bytes();
  p.budget_fraction = 0;
  CHECK(fm::budget_chunks(p, geometry(), 1000) == 1000);
  p.budget_fraction = 0.5;
  CHECK(fm::budget_chunks(p, geometry(), 1000) == 500);
  p.max_chunks = 40;
  CHECK(fm::budget_chunks(p, geometry(), 1000) == 40);
  CHECK(fm::budget_chunks(p, geometry(), 60) == 30);
  p.budget_bytes = 20 * chunk + chunk - 1;
  CHECK(fm::budget_chunks(p, geometry(), 1000) == 20);
  p.mode = selection_mode::everything;
  CHECK(fm::budget_chunks(p, geometry(), 1000) == 1000);
  CHECK(fm::budget_chunks(p, geometry(), 0) == 0);
  CHECK(fm::budget_chunks(p, geometry(), -5) == 0);
}

TEST_CASE("a policy that cannot work is refused with the field's name", "[policy]") {
  using policy = fm::selection_policy;
  struct bad {
    std::string field;
    std::function<void(policy&)> spoil;
  };
  const std::vector<bad> cases = {
      {"mode", [](policy& p) { p.mode = static_cast<selection_mode>(7); }},
      {"interval", [](policy& p) { p.interval = 0; }},
      {"interval", [](policy& p) { p.interval = -64; }},
      {"sink_chunks", [](policy& p) { p.sink_chunks = -1; }},
      {"recent_chunks", [](policy& p) { p.recent_chunks = -1; }},
      {"budget_fraction", [](policy& p) { p.budget_fraction = -0.1; }},
      {"budget_fraction", [](policy& p) { p.budget_fraction = 13.5; }},
      {"budget_fraction", [](policy& p) { p.budget_fraction = nan_value; }},
      {"max_chunks", [](policy& p) { p.max_chunks = -1; }},
      {"max_chunks", [](policy& p) { p.max_chunks = 2; }},
      {"min_chunks", [](policy& p) { p.min_chunks = -1; }},
      {"min_chunks", [](policy& p) { p.min_chunks = 9, p.max_chunks = 8; }},
      {"budget_bytes", [](policy& p) { p.budget_bytes = 1; }},
      {"budget_bytes",
       [](policy& p) { p.budget_bytes = 3 * fm::chunk_layout(geometry()).chunk_bytes() - 1; }},
      {"threshold", [](policy& p) { p.threshold = float(nan_value); }},
      {"hysteresis", [](policy& p) { p.hysteresis = -1; }},
      {"hysteresis", [](policy& p) { p.hysteresis = float(infinite); }},
      {"hysteresis", [](policy& p) { p.hysteresis = float(nan_value); }},
      {"hold", [](policy& p) { p.hold = 1; }},
      {"hold", [](policy& p) { p.hold = -0.5f; }},
      {"hold", [](policy& p) { p.hold = float(nan_value); }},
      {"fallback.max_dropped", [](policy& p) { p.fallback.max_dropped = 1.5f; }},
      {"fallback.max_dropped", [](policy& p) { p.fallback.max_dropped = float(nan_value); }},
      {"fallback.min_attention_mass", [](policy& p) { p.fallback.min_attention_mass = -0.1f; }},
      {"fallback.widen_factor", [](policy& p) { p.fallback.widen_factor = 0.5f; }},
      {"fallback.widen_factor", [](policy& p) { p.fallback.widen_factor = float(infinite); }},
      {"fallback.patience", [](policy& p) { p.fallback.patience = 0; }},
      {"fallback.recover_after", [](policy& p) { p.fallback.recover_after = 0; }},
  };
  for (const bad& b : cases) {
    policy p;
    b.spoil(p);
    CAPTURE(b.field);
    bool refused = false;
    try {
      fm::validate(p, geometry());
    } catch (const fm::argument_error& e) {
      refused = true;
      CHECK(e.code() == fm::status::bad_argument);
      CHECK(std::string(e.what()).find(b.field) != std::string::npos);
    }
    CHECK(refused);
    CHECK_THROWS_AS(fm::sequence_options_for(p, geometry(), 4096), fm::argument_error);
  }
  CHECK_NOTHROW(fm::validate(policy{}, geometry()));
}

TEST_CASE("sequence options hold the largest budget, the open chunk and one interval's growth", "[policy]") {
  fm::selection_policy p;
  p.interval = GENERATE(1, 64, 65, 200);
  CAPTURE(p.interval);
  const std::int64_t tokens = 16384;
  const fm::sequence_options o = fm::sequence_options_for(p, geometry(), tokens);
  CHECK(o.max_tokens == tokens);
  CHECK(o.sink_chunks == p.sink_chunks);
  CHECK(o.recent_chunks == p.recent_chunks);
  // 0.135 x 256 = 34.56
  CHECK(o.max_resident_chunks ==
        35 + 1 + std::max<std::int64_t>((p.interval + 63) / 64, p.recent_chunks) + 1);

  SECTION("never less than a prompt in pieces needs") {
    fm::selection_policy small = p;
    small.recent_chunks = 5;
    small.budget_fraction = 0;
    small.max_chunks = 6;
    CHECK(fm::sequence_options_for(small, geometry(), tokens).max_resident_chunks ==
          6 + 1 + std::max<std::int64_t>((p.interval + 63) / 64, 5) + 1);
  }
  SECTION("never more than the sequence can have") {
    for (const std::int64_t few : {1, 63, 64, 65, 200, 640}) {
      const auto small = fm::sequence_options_for(p, geometry(), few);
      CHECK(small.max_resident_chunks <= (few + 63) / 64);
      CHECK(small.max_resident_chunks >= 1);
    }
  }
  SECTION("without a limit there is room for all; with everything it is resident as a whole") {
    fm::selection_policy all = p;
    all.budget_fraction = 0;
    CHECK(fm::sequence_options_for(all, geometry(), tokens).max_resident_chunks == 256);
    all = p;
    all.mode = selection_mode::everything;
    CHECK(fm::sequence_options_for(all, geometry(), tokens).max_resident_chunks == 0);
  }
  SECTION("no tokens are no sequence") {
    CHECK_THROWS_AS(fm::sequence_options_for(p, geometry(), 0), fm::argument_error);
    CHECK_THROWS_AS(fm::sequence_options_for(p, geometry(), -1), fm::argument_error);
  }
}
