// SPDX-License-Identifier: MIT
#include "src/train/learn/optimiser.hpp"

#include <cmath>
#include <random>

#include "src/train/learn/kernels.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"

namespace ft = flashmemory::train;
namespace td = flashmemory::train::detail;

TEST_CASE("AdamW follows its formula in double precision, with clipping and without decay of norms",
          "[train]") {
  const auto seed = GENERATE(flashmemory_test::fresh_seeds(3));
  const double clip = GENERATE(0.0, 0.5);
  const double decay = GENERATE(0.0, 0.1);
  CAPTURE(seed, clip, decay);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  td::encoder_shape shape;
  shape.hidden = 3;
  shape.rank = 5;
  shape.heads = 1;
  const td::parameter_map map(shape);
  ft::optimiser_options o;
  o.clip = clip;
  o.decay = decay;
  td::adamw_state state;
  std::vector<float> parameters(std::size_t(2 * map.count));
  for (float& p : parameters) p = normal(random);
  std::vector<double> p(parameters.begin(), parameters.end()), m(p.size()), v(p.size());
  for (int step = 1; step <= 5; ++step) {
    std::vector<float> gradient(parameters.size());
    double squares = 0;
    for (float& g : gradient) {
      g = normal(random);
      squares += double(g) * double(g);
    }
    const double norm = state.update(o, map, 0.01, gradient, parameters);
    CHECK(norm == Approx(std::sqrt(squares)));
    const double scale = clip > 0 ? std::min(1.0, 2 * clip / norm) : 1;
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double g = scale * double(gradient[i]);
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.98 * v[i] + 0.02 * g * g;
      const double decayed = std::int64_t(i) % map.count < map.q_norm ? decay : 0;
      p[i] -=
          0.01 * (m[i] / (1 - std::pow(0.9, step)) / (std::sqrt(v[i] / (1 - std::pow(0.98, step))) + 1e-8) +
                  decayed * p[i]);
      CHECK(parameters[i] == Approx(p[i]).epsilon(1e-4).margin(1e-5));
    }
  }
}

TEST_CASE("a gradient that is not finite changes nothing", "[train]") {
  td::encoder_shape shape;
  shape.hidden = shape.rank = shape.heads = 1;
  const td::parameter_map map(shape);
  std::vector<float> parameters(std::size_t(map.count), 1.0f), gradient(parameters.size(), 0.5f);
  const std::vector<float> before = parameters;
  td::adamw_state state;
  gradient[3] = std::nanf("");
  CHECK(std::isnan(state.update({}, map, 0.01, gradient, parameters)));
  CHECK(parameters == before);
  CHECK(state.updates == 0);
}

TEST_CASE("the learning rate warms up and falls as its schedule says", "[train]") {
  ft::optimiser_options o;
  o.rate = 2;
  o.warm_up = 4;
  o.final_rate = 0.1;
  o.schedule = ft::rate_schedule::cosine;
  CHECK(td::rate_at(o, 0, 101) == Approx(0.5).epsilon(1e-3));
  CHECK(td::rate_at(o, 50, 101) == Approx(1.1));
  CHECK(td::rate_at(o, 100, 101) == Approx(0.2));
  o.schedule = ft::rate_schedule::linear;
  CHECK(td::rate_at(o, 75, 101) == Approx(2 * (0.1 + 0.9 * 0.25)));
  o.schedule = ft::rate_schedule::constant;
  CHECK(td::rate_at(o, 100, 101) == Approx(2));
  CHECK(td::rate_at(o, 0, 1) == Approx(0.5));
}
