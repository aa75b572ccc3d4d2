// SPDX-License-Identifier: MIT
#include "src/train/learn/loss.hpp"

#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <numeric>

#include "src/core/format.hpp"
#include "src/core/parallel.hpp"
#include "src/train/record/random.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {

void validate(const loss_options& o) {
  const auto need = [](bool good, const char* field, double value, const char* wanted) {
    if (good) return;
    throw argument_error(status::bad_argument,
                         formatted("loss: {} is {}, expected {}", field, value, wanted));
  };
  const auto weight = [&](const char* field, double value) {
    need(std::isfinite(value) && value >= 0, field, value, "a number >= 0");
  };
  weight("focal", o.focal);
  weight("bce", o.bce);
  weight("contrastive", o.contrastive);
  weight("ranking", o.ranking);
  need(o.focal + o.bce + o.contrastive + o.ranking > 0, "sum of weights", 0, "a positive number");
  weight("focal_gamma", o.focal_gamma);
  need(o.focal_alpha > 0 && o.focal_alpha < 1, "focal_alpha", o.focal_alpha, "a number between 0 and 1");
  weight("bce_positive_weight", o.bce_positive_weight);
  weight("negatives_per_positive", o.negatives_per_positive);
  need(std::isfinite(o.contrastive_temperature) && o.contrastive_temperature > 0, "contrastive_temperature",
       o.contrastive_temperature, "a number > 0");
  weight("ranking_margin", o.ranking_margin);
  need(o.ranking_negatives > 0, "ranking_negatives", o.ranking_negatives, "a positive number");
}

namespace detail {
namespace {

// Both of z, and of -z, with e = exp(-|z|): the exponential is what a step on a GPU waits for.
double softplus(double z, double e) noexcept { return std::max(z, 0.0) + std::log1p(e); }
double sigmoid(double z, double e) noexcept { return z >= 0 ? 1 / (1 + e) : 1 - 1 / (1 + e); }

double softplus(double z) noexcept { return softplus(z, std::exp(-std::fabs(z))); }
double sigmoid(double z) noexcept { return sigmoid(z, std::exp(-std::fabs(z))); }

struct term {
  double value = 0;
  double slope = 0;
};

// With s = z for positives and -z for negatives both classes have the loss (1 - p)^gamma * softplus(-s),
// p = sigmoid(s); its derivative by s is -(1 - p)^gamma * (gamma * p * softplus(-s) + 1 - p).
term focal_term(double s, double gamma) noexcept {
  const double e = std::exp(-std::fabs(s));
  const double rest = sigmoid(-s, e);
  const double entropy = softplus(-s, e);
  const double factor = gamma == 0 ? 1 : gamma == 2 ? rest * rest : std::pow(rest, gamma);
  return {factor * entropy, -factor * (gamma * sigmoid(s, e) * entropy + rest)};
}

struct candidate {
  double z = 0;
  double slope = 0;
  double weight = 1;  // of a positive
  double share = 0;   // of a softmax, before it is divided by the sum
  std::int64_t chunk = 0;
  bool positive = false;
};

void add_contrastive(const loss_options& o, double weight, std::vector<candidate>& all,
                     std::int64_t positives, double& value) {
  const double t = o.contrastive_temperature;
  double largest = -INFINITY;
  double total_weight = 0;
  for (const candidate& c : all) {
    largest = std::max(largest, c.z / t);
    if (c.positive) total_weight += c.weight;
  }
  if (positives == 0 || total_weight <= 0) return;
  double sum_all = 0;
  double sum_negative = 0;
  for (candidate& c : all) {
    c.share = std::exp(c.z / t - largest);
    sum_all += c.share;
    if (!c.positive) sum_negative += c.share;
  }
  if (!o.contrastive_against_negatives) {
    const double log_sum = std::log(sum_all);
    for (candidate& c : all) {
      c.slope += weight / t * (c.share / sum_all);
      if (!c.positive) continue;
      const double w = c.weight / total_weight;
      value += weight * w * (log_sum - (c.z / t - largest));
      c.slope -= weight / t * w;
    }
    return;
  }
  // Every positive has a softmax of its own, over itself and the negatives; negatives collect from all.
  double from_positives = 0;
  for (candidate& c : all) {
    if (!c.positive) continue;
    const double e = c.share;
    const double w = c.weight / total_weight;
    value += weight * w * (std::log(sum_negative + e) - (c.z / t - largest));
    c.slope += weight / t * w * (e / (sum_negative + e) - 1);
    from_positives += w / (sum_negative + e);
  }
  for (candidate& c : all) {
    if (!c.positive) c.slope += weight / t * c.share * from_positives;
  }
}

void add_ranking(const loss_options& o, double weight, std::vector<candidate>& all, std::int64_t positives,
                 double& value) {
  std::vector<candidate*> hard;
  double total_weight = 0;
  for (candidate& c : all) {
    if (c.positive) total_weight += c.weight;
    if (!c.positive) hard.push_back(&c);
  }
  const std::size_t kept = std::min(hard.size(), static_cast<std::size_t>(o.ranking_negatives));
  if (positives == 0 || kept == 0 || total_weight <= 0) return;
  const auto harder = [](const candidate* a, const candidate* b) {
    return a->z != b->z ? a->z > b->z : a->chunk > b->chunk;
  };
  std::partial_sort(hard.begin(), hard.begin() + static_cast<std::ptrdiff_t>(kept), hard.end(), harder);
  for (candidate& c : all) {
    if (!c.positive) continue;
    const double w = weight * c.weight / total_weight / static_cast<double>(kept);
    for (std::size_t i = 0; i < kept; ++i) {
      const double gap = o.ranking_margin - c.z + hard[i]->z;
      value += w * softplus(gap);
      c.slope -= w * sigmoid(gap);
      hard[i]->slope += w * sigmoid(gap);
    }
  }
}

}  // namespace

template <class Real>
double loss_and_gradient(const loss_options& o, std::int64_t chunks, const std::vector<target>& targets,
                         const Real* scores, std::uint64_t seed, Real* d_scores, const thread_hook& threads) {
  const auto windows = static_cast<std::int64_t>(targets.size());
  std::fill_n(d_scores, chunks * windows, Real{0});
  double positives = 0;
  double windows_with_positives = 0;
  for (const target& t : targets) {
    for (const positive_chunk& p : t.labels->positives) {
      positives += t.weight * (o.weighted_positives ? static_cast<double>(p.weight) : 1.0);
    }
    if (!t.labels->positives.empty()) windows_with_positives += t.weight;
  }
  const double per_positive = 1 / std::max(1.0, positives);
  const double per_window = windows_with_positives > 0 ? 1 / windows_with_positives : 0;
  std::vector<double> totals(targets.size());
  flashmemory::detail::parallel_for(threads, static_cast<std::int32_t>(windows), [&](std::int32_t w) {
    double total = 0;
    std::vector<candidate> all;
    const target& t = targets[static_cast<std::size_t>(w)];
    const window_labels& labels = *t.labels;
    const auto count = static_cast<std::int64_t>(labels.positives.size());
    auto positive = labels.positives.begin();
    for (std::int64_t c = labels.first_candidate; c < std::min<std::int64_t>(labels.end_candidate, chunks);
         ++c) {
      candidate one;
      one.chunk = c;
      one.z = static_cast<double>(scores[c * windows + w]);
      if (positive != labels.positives.end() && static_cast<std::int64_t>(positive->chunk) == c) {
        one.positive = true;
        if (o.weighted_positives) one.weight = static_cast<double>(positive->weight);
        ++positive;
      }
      all.push_back(one);
    }
    if (all.empty()) return;
    if (o.focal > 0 || o.bce > 0) {
      const double negatives =
          std::max(1.0, static_cast<double>(static_cast<std::int64_t>(all.size()) - count));
      const double wanted = o.negatives_per_positive * static_cast<double>(std::max<std::int64_t>(1, count));
      const double keep = o.negatives_per_positive > 0 ? wanted / negatives : 1;
      random_stream random(seed, static_cast<std::uint64_t>(w));
      for (candidate& c : all) {
        if (keep < 1 && !c.positive && random.uniform() >= keep) continue;
        const double s = c.positive ? c.z : -c.z;
        double value = 0;
        double slope = 0;
        if (o.focal > 0) {
          const term f = focal_term(s, o.focal_gamma);
          const double a = o.focal * (c.positive ? o.focal_alpha : 1 - o.focal_alpha);
          value += a * f.value;
          slope += a * f.slope;
        }
        if (o.bce > 0) {
          const double b = o.bce * (c.positive ? o.bce_positive_weight : 1);
          value += b * softplus(-s);
          slope -= b * sigmoid(-s);
        }
        const double factor = t.weight * per_positive * (c.positive ? c.weight : 1);
        total += factor * value;
        c.slope += factor * (c.positive ? slope : -slope);
      }
    }
    if (o.contrastive > 0) add_contrastive(o, o.contrastive * t.weight * per_window, all, count, total);
    if (o.ranking > 0) add_ranking(o, o.ranking * t.weight * per_window, all, count, total);
    for (const candidate& c : all) d_scores[c.chunk * windows + w] = static_cast<Real>(c.slope);
    totals[static_cast<std::size_t>(w)] = total;
  });
  return std::accumulate(totals.begin(), totals.end(), 0.0);
}

template double loss_and_gradient(const loss_options&, std::int64_t, const std::vector<target>&, const float*,
                                  std::uint64_t, float*, const thread_hook&);
template double loss_and_gradient(const loss_options&, std::int64_t, const std::vector<target>&,
                                  const double*, std::uint64_t, double*, const thread_hook&);

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
