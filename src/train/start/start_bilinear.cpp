// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>

#include "src/core/parallel.hpp"
#include "src/train/learn/gemm.hpp"
#include "src/train/learn/kernels.hpp"
#include "src/train/learn/loss.hpp"
#include "src/train/learn/optimiser.hpp"
#include "src/train/learn/sampler.hpp"
#include "src/train/start/start.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

using float_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void multiply(const thread_hook& threads, operand<float> a, operand<float> b, Eigen::Index m, Eigen::Index n,
              Eigen::Index k, float beta, float* c) {
  parallel_gemm<float>(threads, m, n, k, 1, a, b, beta, c, n);
}

}  // namespace

void refine_bilinear(const document_source& source, const model_taps& taps, std::size_t retriever,
                     const encoder_shape& shape, const start_options& o, example_store& examples,
                     const matrix& left, const matrix& right, matrix& map) {
  const Eigen::Index width = shape.hidden;
  const float_matrix white_query = left.cast<float>();
  const float_matrix white_key = right.cast<float>();
  // Scores of a spread that a loss on logits can work with: one whitened pair scores ~ |map| by chance.
  const double norm = map.norm();
  if (norm > 0) map *= 1 / norm;
  std::vector<float> parameters(static_cast<std::size_t>(width * width + 1));
  for (Eigen::Index i = 0; i < width * width; ++i) {
    parameters[static_cast<std::size_t>(i)] = static_cast<float>(map.data()[i]);
  }
  const double deviation = std::sqrt(map.squaredNorm() / static_cast<double>(map.size()));
  optimiser_options adam;
  adam.rate = o.convex_rate * deviation;
  adam.warm_up = 10;
  adam.clip = 0;
  std::vector<float> m(parameters.size()), v(parameters.size()), gradient(parameters.size());
  sampler draw(source, o.seed);
  document_batch batch;
  float_matrix x, u, through, dots, d_through, d_u;
  std::vector<float> scores, d_scores;
  std::vector<std::int32_t> where;
  for (std::int64_t step = 0; step < o.convex_steps; ++step) {
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    random_stream random(o.seed, static_cast<std::uint64_t>(step));
    std::int64_t tokens = 0;
    std::int64_t used = 0;
    std::int64_t barren = 0;
    while (tokens < o.tokens_per_step && barren < static_cast<std::int64_t>(draw.documents().size())) {
      const auto from = examples.get(draw.draw_document());
      const std::vector<std::int64_t> windows =
          sampler::draw_windows(*from, o.windows_per_document, o.needing_share, random);
      if (windows.empty()) {
        ++barren;
        continue;
      }
      batch.fill(shape, taps, *from, windows);
      const encoder_input<float> in = batch.input(retriever, taps);
      const auto n = static_cast<Eigen::Index>(windows.size());
      const Eigen::Index keys = in.chunks * in.keys_per_chunk;
      x.resize(n, width);
      u.resize(n, width);
      through.resize(n, width);
      dots.resize(keys, n);
      multiply(o.threads, {in.hidden, width}, {white_query.data(), width}, n, width, width, 0, x.data());
      multiply(o.threads, {x.data(), width}, {parameters.data(), width}, n, width, width, 0, u.data());
      multiply(o.threads, {u.data(), width}, {white_key.data(), width}, n, width, width, 0, through.data());
      multiply(o.threads, {in.key_inputs, width}, {through.data(), width, true}, keys, n, width, 0,
               dots.data());
      scores.resize(static_cast<std::size_t>(in.chunks * n));
      where.resize(scores.size());
      d_scores.resize(scores.size());
      for (std::int64_t c = 0; c < in.chunks; ++c) {
        for (Eigen::Index w = 0; w < n; ++w) {
          Eigen::Index best = 0;
          const float most = dots.col(w).segment(c * in.keys_per_chunk, in.keys_per_chunk).maxCoeff(&best);
          scores[static_cast<std::size_t>(c * n + w)] = most + parameters.back();
          where[static_cast<std::size_t>(c * n + w)] = static_cast<std::int32_t>(best);
        }
      }
      std::vector<target> targets;
      for (const std::int64_t w : windows) targets.push_back({&from->labels[static_cast<std::size_t>(w)], 1});
      loss_and_gradient(o.loss, in.chunks, targets, scores.data(), random.next(), d_scores.data());
      d_through.setZero(n, width);
      flashmemory::detail::parallel_for(o.threads, static_cast<std::int32_t>(n), [&](std::int32_t w) {
        for (std::int64_t c = 0; c < in.chunks; ++c) {
          const auto at = static_cast<std::size_t>(c * n + w);
          if (d_scores[at] == 0) continue;
          const float* key = in.key_inputs + (c * in.keys_per_chunk + where[at]) * width;
          d_through.row(w) += d_scores[at] * Eigen::Map<const Eigen::RowVectorXf>(key, width);
        }
      });
      d_u.resize(n, width);
      multiply(o.threads, {d_through.data(), width}, {white_key.data(), width, true}, n, width, width, 0,
               d_u.data());
      multiply(o.threads, {x.data(), width, true}, {d_u.data(), width}, width, width, n, 1, gradient.data());
      for (const float d : d_scores) gradient.back() += d;
      tokens += from->tokens;
      ++used;
    }
    if (used == 0) return;
    adamw_step adamw_now{};
    adamw_now.beta1 = static_cast<float>(adam.beta1);
    adamw_now.beta2 = static_cast<float>(adam.beta2);
    adamw_now.eps = static_cast<float>(adam.eps);
    adamw_now.correction1 = static_cast<float>(1 - std::pow(adam.beta1, static_cast<double>(step + 1)));
    adamw_now.correction2 = static_cast<float>(1 - std::pow(adam.beta2, static_cast<double>(step + 1)));
    adamw_now.gradient_scale = 1 / static_cast<float>(used);
    const double rate = rate_at(adam, step, o.convex_steps);
    adamw_now.rate = static_cast<float>(rate);
    const auto count = static_cast<std::int64_t>(parameters.size()) - 1;
    adamw(adamw_now, count, gradient.data(), parameters.data(), m.data(), v.data());
    adamw_now.rate =
        static_cast<float>(0.05 * rate_at(adam, step, o.convex_steps) / adam.rate);  // the intercept's
    adamw(adamw_now, 1, gradient.data() + count, parameters.data() + count, m.data() + count,
          v.data() + count);
  }
  for (Eigen::Index i = 0; i < width * width; ++i) {
    map.data()[i] = static_cast<double>(parameters[static_cast<std::size_t>(i)]);
  }
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
