// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <deque>
#include <flashmemory/error.hpp>

#include "src/train/learn/gemm.hpp"
#include "src/train/learn/sampler.hpp"
#include "src/train/start/start.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

using float_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// sums += a^T b for a [n, width], b [n, width], in float per document and double over documents.
void add_products(const thread_hook& threads, const float_matrix& a, const float_matrix& b, matrix& sums) {
  float_matrix product(a.cols(), b.cols());
  parallel_gemm<float>(threads, a.cols(), b.cols(), a.rows(), 1, {a.data(), a.cols(), true},
                       {b.data(), b.cols()}, 0, product.data(), b.cols());
  sums += product.cast<double>();
}

// The regression's two parameters by Newton's method; a slope that a start without merit would get is not
// allowed to silence it.
void logistic(const std::vector<float>& z, const std::vector<char>& y, double& slope, double& intercept) {
  double mean = 0;
  double squares = 0;
  for (const float v : z) {
    mean += static_cast<double>(v);
    squares += static_cast<double>(v) * static_cast<double>(v);
  }
  const double n = static_cast<double>(z.size());
  mean /= n;
  const double deviation = std::sqrt(std::max(squares / n - mean * mean, 1e-30));
  double a = 1;  // of the standardised score
  double b = 0;
  for (int iteration = 0; iteration < 50; ++iteration) {
    double ga = 0, gb = 0, haa = 1e-6, hab = 0, hbb = 1e-6;
    for (std::size_t i = 0; i < z.size(); ++i) {
      const double x = (static_cast<double>(z[i]) - mean) / deviation;
      const double p = 1 / (1 + std::exp(-(a * x + b)));
      const double error = p - y[i];
      const double weight = p * (1 - p);
      ga += error * x;
      gb += error;
      haa += weight * x * x;
      hab += weight * x;
      hbb += weight;
    }
    const double det = haa * hbb - hab * hab;
    // Half steps far from the minimum: a full one may overshoot on separable data.
    const double da = std::clamp((hbb * ga - hab * gb) / det, -1.0, 1.0);
    const double db = std::clamp((haa * gb - hab * ga) / det, -1.0, 1.0);
    a -= da;
    b -= db;
    if (std::fabs(da) + std::fabs(db) < 1e-7) break;
  }
  slope = std::max(a, 0.3) / deviation;
  intercept = b - slope * mean;
}

}  // namespace

std::vector<moments> collect_moments(const document_source& source, const dual_encoder_config& c,
                                     const model_taps& taps, const start_options& o,
                                     example_store& examples) {
  const Eigen::Index width = c.hidden;
  std::vector<moments> all(c.retrievers.size());
  for (moments& m : all) {
    m.queries = m.keys = m.needed = matrix::Zero(width, width);
    m.query_mean = vector::Zero(width);
  }
  sampler draw(source, o.seed);
  auto documents = static_cast<std::int64_t>(draw.documents().size());
  if (o.max_documents > 0) documents = std::min(documents, o.max_documents);
  double queries = 0;
  double keys_seen = 0;
  for (std::int64_t d = 0; d < documents; ++d) {
    const auto from = examples.get(draw.draw_document());
    const auto n = static_cast<Eigen::Index>(from->positions.size());
    if (n == 0) continue;
    queries += static_cast<double>(n);
    keys_seen += static_cast<double>(from->keys[taps.stream.front()].keys);
    for (std::size_t r = 0; r < all.size(); ++r) {
      moments& m = all[r];
      float_matrix x(n, width);
      for (Eigen::Index i = 0; i < n; ++i) from->queries[taps.query[r]].read(i, x.row(i).data());
      const document_keys& stream = from->keys[taps.stream[r]];
      float_matrix f(stream.keys, width);
      for (Eigen::Index i = 0; i < f.rows(); ++i) stream.inputs.read(i, f.row(i).data());
      const Eigen::RowVectorXf centre = f.colwise().mean();
      f.rowwise() -= centre;
      add_products(o.threads, x, x, m.queries);
      m.query_mean += x.colwise().sum().transpose().cast<double>();
      add_products(o.threads, f, f, m.keys);
      // Per window the weighted sum of the keys that it needed, then one product for all windows.
      float_matrix wanted = float_matrix::Zero(n, width);
      for (Eigen::Index i = 0; i < n; ++i) {
        const auto& positives = from->labels[static_cast<std::size_t>(i)].positives;
        for (std::size_t p = 0; p < positives.size(); ++p) {
          const std::int64_t best = from->best_keys[static_cast<std::size_t>(i)][p];
          const std::int64_t first = static_cast<std::int64_t>(positives[p].chunk) * taps.keys_per_chunk;
          if (best >= 0) {
            wanted.row(i) += positives[p].weight * f.row(best);
          } else {
            wanted.row(i) += positives[p].weight * f.middleRows(first, taps.keys_per_chunk).colwise().mean();
          }
          m.pairs += static_cast<double>(positives[p].weight);
        }
      }
      add_products(o.threads, x, wanted, m.needed);
    }
  }
  for (moments& m : all) {
    if (m.pairs <= 0) {
      throw argument_error(status::bad_argument, "start: no window of the training documents needs anything");
    }
    m.queries /= queries;
    m.query_mean /= queries;
    m.keys /= keys_seen;
    m.needed /= m.pairs;
  }
  return all;
}

void fit_scale(const document_source& source, const start_options& o, example_store& examples,
               dual_encoder_config& c) {
  dual_model model(c, source.geometry(),
                   std::int64_t{o.windows.entries_per_chunk} * o.windows.tokens_per_entry);
  sampler draw(source, o.seed + 1);
  std::deque<encoder<float>> encoders;
  std::vector<std::vector<float>> scores(c.retrievers.size());
  for (std::size_t r = 0; r < scores.size(); ++r) encoders.emplace_back(model.shape);
  std::vector<char> needed;
  document_batch batch;
  const auto documents = std::min<std::int64_t>(16, static_cast<std::int64_t>(draw.documents().size()));
  for (std::int64_t d = 0; d < documents; ++d) {
    const auto from = examples.get(draw.draw_document());
    random_stream random(o.seed, static_cast<std::uint64_t>(d));
    const std::vector<std::int64_t> windows = sampler::draw_windows(*from, 32, o.needing_share, random);
    if (windows.empty()) continue;
    batch.fill(model.shape, model.taps, *from, windows);
    for (std::size_t r = 0; r < scores.size(); ++r) {
      encoders[r].forward(model.of(static_cast<std::int64_t>(r)), batch.input(r, model.taps), o.threads);
    }
    for (std::size_t w = 0; w < windows.size(); ++w) {
      const window_labels& labels = from->labels[static_cast<std::size_t>(windows[w])];
      auto positive = labels.positives.begin();
      for (std::int64_t chunk = labels.first_candidate; chunk < labels.end_candidate; ++chunk) {
        const bool is =
            positive != labels.positives.end() && static_cast<std::int64_t>(positive->chunk) == chunk;
        if (is) ++positive;
        needed.push_back(is);
        for (std::size_t r = 0; r < scores.size(); ++r) {
          scores[r].push_back(encoders[r].scores()[static_cast<std::size_t>(chunk) * windows.size() + w]);
        }
      }
    }
  }
  if (needed.empty()) return;
  for (std::size_t r = 0; r < scores.size(); ++r) {
    double slope = 1;
    double intercept = 0;
    logistic(scores[r], needed, slope, intercept);
    for (float& w : c.retrievers[r].weights_proj) w *= static_cast<float>(slope);
    c.retrievers[r].logit_offset = static_cast<float>(intercept);
  }
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
