// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/error.hpp>

#include "src/train/learn/encoder.hpp"
#include "tests/cuda/gpu.hpp"
#include "tests/cuda/train_problem.hpp"
#include "tests/support/fresh_seed.hpp"

namespace cu = flashmemory::cuda;
namespace td = flashmemory::train::detail;
using namespace flashmemory_test;
using fm::dtype;

namespace {

train_extents any_extents() {
  return GENERATE(train_extents{5, 3, 1, 1, 1, 1, true, false, dtype::f32},
                  train_extents{7, 4, 3, 5, 6, 3, true, false, dtype::bf16},
                  train_extents{64, 40, 2, 9, 11, 16, true, true, dtype::bf16},
                  train_extents{33, 17, 5, 3, 37, 4, true, true, dtype::f32},
                  train_extents{9, 2, 2, 4, 7, 2, false, true, dtype::f32},
                  train_extents{48, 8, 8, 33, 3, 40, false, false, dtype::bf16},
                  train_extents{16, 16, 9, 40, 5, 1, true, false, dtype::f32});
}

/// Scores and gradients of retriever `r` in double precision, by the CPU's encoder, which finite differences check.
struct exact_outcome {
  std::vector<double> scores, gradient;
};
exact_outcome exact(const train_problem& p, std::size_t r) {
  const ft::encoder_shape& s = p.setup.shape;
  const auto windows = p.batch.windows(), count = p.batch.chunks * p.setup.keys_per_chunk;
  std::vector<double> hidden, inputs, keys;
  const auto append = [](const ft::row_matrix& from, std::int64_t row, std::vector<double>& to) {
    std::vector<float> values(static_cast<std::size_t>(from.width()));
    from.read(row, values.data());
    to.insert(to.end(), values.begin(), values.end());
  };
  for (const std::int64_t row : p.batch.rows) append(p.queries[p.setup.query[r]], row, hidden);
  const ft::document_keys& from = p.keys[p.setup.stream[r]];
  for (std::int64_t k = 0; k < count; ++k) {
    if (s.trains_keys) {
      append(from.inputs, k, inputs);
      continue;
    }
    float scale;
    std::memcpy(&scale, from.native.data() + k * 132 + 128, sizeof scale);
    for (std::int64_t i = 0; i < 128; ++i) {
      const auto code = std::to_integer<std::uint8_t>(from.native[static_cast<std::size_t>(k * 132 + i)]);
      keys.push_back(static_cast<double>(fm::from_e4m3(code) * scale));
    }
  }
  td::encoder_input<double> input;
  input.windows = windows;
  input.hidden = hidden.data();
  input.positions = p.batch.positions.data();
  input.chunks = p.batch.chunks;
  input.keys_per_chunk = p.setup.keys_per_chunk;
  (s.trains_keys ? input.key_inputs : input.keys) = s.trains_keys ? inputs.data() : keys.data();
  const std::size_t each = p.parameters_of_one();
  const auto begin = p.state.parameters.begin() + static_cast<std::ptrdiff_t>(r * each);
  const std::vector<double> parameters(begin, begin + static_cast<std::ptrdiff_t>(each));
  td::encoder<double> encoder(s);
  encoder.forward(parameters.data(), input, fm::serial_threads());
  const std::size_t pairs = encoder.scores().size();
  std::vector<double> d_scores;
  for (std::size_t i = 0; i < pairs; ++i) d_scores.push_back(static_cast<double>(p.d_scores[r * pairs + i]));
  exact_outcome out{encoder.scores(), std::vector<double>(each)};
  encoder.backward(parameters.data(), input, d_scores.data(), out.gradient.data(), fm::serial_threads());
  return out;
}

/// How far off a result is in several problems. Where the best key of a chunk or an open relu hangs on a rounding, a
/// gradient jumps, by up to a fifth of its norm: one problem of a hundred or so, at the larger extents. What is
/// compared is therefore the middle one.
class distances_of_problems {
 public:
  void add(double d) {
    REQUIRE(std::isfinite(d));
    of_.push_back(d);
  }
  void check(double limit) {
    std::sort(of_.begin(), of_.end());
    CHECK(of_[of_.size() / 2] < limit);
    CHECK(of_.back() < 0.5);
  }

 private:
  std::vector<double> of_;
};
constexpr int problems = 5;

/// Where all relus are shut there is no gradient.
double relative(double got, double want) { return want > 0 ? std::fabs(got / want - 1) : got; }

}  // namespace

TEST_CASE("scores and every gradient of the CUDA backend are the double-precision encoder's",
          "[gpu][train]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  const train_extents e = any_extents();
  const std::size_t tile = GENERATE(std::size_t{1}, std::size_t{32} << 20);
  CAPTURE(seed, e.hidden, e.rank, e.heads, e.windows, e.chunks, e.keys_per_chunk, e.trains_keys, e.rope,
          tile);
  std::mt19937 random(seed);
  cu::training_options options;
  options.tile_bytes = tile;
  const ft::parameter_map map(train_problem(random, e).setup.shape);
  const std::int64_t tensors[] = {map.wq_a,   map.wq_b,   map.weights_proj, map.wk,
                                  map.q_norm, map.offset, map.count};
  distances_of_problems norm, scores[3], gradients[3][6];
  for (int problem = 0; problem < problems; ++problem) {
    const train_problem p(random, e);
    const auto backend = cu::training_on_device(options)(p.setup);
    const train_outcome got = outcome_of(*backend, p);
    double squares = 0;
    for (std::size_t r = 0; r < 3; ++r) {
      const exact_outcome want = exact(p, r);
      const auto pairs = static_cast<std::ptrdiff_t>(want.scores.size());
      const auto part = [](const std::vector<float>& all, std::size_t of, std::ptrdiff_t size) {
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(of) * size;
        return std::vector<float>(begin, begin + size);
      };
      scores[r].add(distance(part(got.scores, r, pairs), want.scores, 0, pairs));
      const std::vector<float> gradient = part(got.gradient, r, map.count);
      for (std::size_t t = 0; t < 6; ++t)
        gradients[r][t].add(distance(gradient, want.gradient, tensors[t], tensors[t + 1]));
      for (const double g : want.gradient) squares += g * g;
    }
    norm.add(relative(got.norm, std::sqrt(squares)));
  }
  for (std::size_t r = 0; r < 3; ++r) {
    CAPTURE(r);
    scores[r].check(1e-5);
    for (std::size_t t = 0; t < 6; ++t) {
      CAPTURE(t);
      gradients[r][t].check(1e-4);
    }
  }
  norm.check(1e-4);
}

TEST_CASE("the CUDA backend rounds as the CPU's does, and its AdamW steps are the same", "[gpu][train]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  const train_extents e = any_extents();
  const auto operands = GENERATE(ft::precision::f32, ft::precision::bf16);
  const bool quantise = GENERATE(false, true), rounding = GENERATE(false, true);
  CAPTURE(seed, e.hidden, e.rank, e.heads, e.windows, e.chunks, e.keys_per_chunk, e.trains_keys, e.rope,
          int(operands), quantise, rounding);
  std::mt19937 random(seed);
  distances_of_problems scores, gradient, norm;
  for (int problem = 0; problem < problems; ++problem) {
    train_problem p(random, e);
    p.setup.shape.operands = operands;
    p.setup.shape.quantise_keys = quantise;
    p.setup.shape.bf16_rounding = rounding;
    const train_outcome want = outcome_of(*ft::make_cpu_backend(p.setup), p, 2);
    const train_outcome got = outcome_of(*cu::training_on_device()(p.setup), p, 2);
    scores.add(distance(got.scores, want.scores, 0, std::int64_t(want.scores.size())));
    gradient.add(distance(got.gradient, want.gradient, 0, std::int64_t(want.gradient.size())));
    norm.add(relative(got.norm, want.norm));
    CHECK(got.after.updates == 1);
    // Where there is a gradient, the first step is one of the rate's length.
    for (std::size_t i = 0; i < want.gradient.size(); ++i) {
      const float moved = got.after.parameters[i] - p.state.parameters[i];
      const float g = got.gradient[i];
      if (std::fabs(g) < 1e-4f) continue;
      CHECK(std::fabs(moved + (g > 0 ? 1e-3f : -1e-3f)) < 2e-6f);
    }
  }
  // Sums in another order reach a neighbouring number where the CPU rounds to bf16 or e4m3, here and there.
  const bool rounds = quantise || rounding || operands == ft::precision::bf16;
  scores.check(rounds ? 1e-2 : 1e-5);
  gradient.check(rounds ? 5e-2 : 1e-4);
  norm.check(rounds ? 5e-2 : 1e-4);
}

TEST_CASE("a gradient that is not finite changes nothing on the device", "[gpu][train]") {
  REQUIRE_GPU();
  const auto operands = GENERATE(ft::precision::f32, ft::precision::bf16);
  std::mt19937 random(3);
  train_problem p(random, {7, 4, 3, 5, 6, 3, true, false, dtype::bf16});
  p.setup.shape.operands = operands;
  const auto backend = cu::training_on_device()(p.setup);
  const train_outcome before = outcome_of(*backend, p);
  p.state.parameters[3] = std::nanf("");
  const train_outcome scores = outcome_of(*backend, p);
  CHECK(std::isnan(scores.scores[0]));
  CHECK(std::isnan(scores.norm));
  CHECK(scores.after.updates == p.state.updates);
  CHECK(scores.after.parameters[4] == p.state.parameters[4]);
  p.state.parameters[3] = 0.5f;
  std::vector<float> d_scores = p.d_scores;
  d_scores[1] = std::nanf("");
  backend->write(p.state);
  backend->clear_gradient();
  std::vector<float> out(p.d_scores.size());
  backend->forward(p.batch, out.data());
  backend->backward(p.batch, d_scores.data());
  CHECK(std::isnan(backend->update({})));
  CHECK(backend->read().parameters == p.state.parameters);
  CHECK(backend->read().updates == 0);
}

TEST_CASE("a device that is not there cannot be trained on", "[gpu][train]") {
  std::mt19937 random(3);
  const train_problem p(random, {7, 4, 3, 5, 6, 3, true, false, dtype::bf16});
  cu::training_options options;
  options.device = GENERATE(-1, 1000);
  try {
    cu::training_on_device(options)(p.setup);
    FAIL("it was made");
  } catch (const fm::error& e) {
    CHECK(e.code() == fm::status::unsupported);
    CHECK_THAT(e.what(), Catch::Contains("no device " + std::to_string(options.device)));
  }
}
