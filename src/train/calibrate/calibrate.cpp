// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>

#include "src/core/format.hpp"
#include "src/train/calibrate/scoring.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

// Candidates of all held-out windows: what each retriever said, and how much keeping it would cost and bring.
struct held_out {
  std::vector<std::vector<float>> logits;  // [retrievers][candidates]
  std::vector<float> cost;                 // share of its window's complete chunks
  std::vector<char> needed;
  double always = 0;  // footprint of sink and recent, summed over windows
  std::int64_t windows = 0;
  std::int64_t positives = 0;
};

struct operating_point {
  double shift = 0;
  double recall = 1;
  double footprint = 0;
};

std::vector<float> combined(const held_out& h, const std::vector<double>& offsets) {
  std::vector<float> z(h.cost.size(), -INFINITY);
  for (std::size_t r = 0; r < h.logits.size(); ++r) {
    const auto offset = static_cast<float>(offsets[r]);
    for (std::size_t i = 0; i < z.size(); ++i) z[i] = std::max(z[i], h.logits[r][i] + offset);
  }
  return z;
}

// The least that is kept to reach the recall, or the most recall that the footprint allows, by a sweep of the
// threshold from above. Equal logits are kept together.
operating_point sweep(const held_out& h, const std::vector<float>& z, const calibration_goal& goal) {
  std::vector<std::size_t> order(z.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return z[a] > z[b]; });
  operating_point at;
  const double windows = static_cast<double>(h.windows);
  double cost = h.always;
  std::int64_t found = 0;
  const auto recall = [&] {
    return h.positives > 0 ? static_cast<double>(found) / static_cast<double>(h.positives) : 1.0;
  };
  const auto threshold_after = [&](std::size_t i) {  // between order[i - 1] and order[i]
    if (order.empty()) return 0.0;
    const double above = i > 0 ? static_cast<double>(z[order[i - 1]]) : static_cast<double>(z[order[0]]) + 2;
    const double below = i < order.size() ? static_cast<double>(z[order[i]]) : above - 2;
    return (above + below) / 2;
  };
  std::size_t i = 0;
  while (true) {
    if (goal.recall > 0 && recall() >= goal.recall) break;
    if (i == order.size()) break;
    std::size_t next = i;
    double next_cost = cost;
    std::int64_t next_found = found;
    while (next < order.size() && z[order[next]] == z[order[i]]) {
      next_cost += static_cast<double>(h.cost[order[next]]);
      next_found += h.needed[order[next]];
      ++next;
    }
    if (goal.footprint > 0 && next_cost / windows > goal.footprint) break;
    i = next;
    cost = next_cost;
    found = next_found;
  }
  at.shift = -threshold_after(i);
  at.recall = recall();
  at.footprint = cost / windows;
  return at;
}

// Offsets at which every retriever alone would keep the share `kept` of candidates.
std::vector<double> level(const held_out& h, double kept) {
  std::vector<double> offsets;
  for (const std::vector<float>& logits : h.logits) {
    std::vector<float> sorted = logits;
    const auto rank =
        std::min(sorted.size() - 1, static_cast<std::size_t>(kept * static_cast<double>(sorted.size())));
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(rank), sorted.end(),
                     std::greater<>());
    offsets.push_back(-static_cast<double>(sorted[rank]));
  }
  return offsets;
}

}  // namespace

calibration calibrate(const document_source& source, dual_encoder_config& config, const evaluation_options& o,
                      const calibration_goal& goal) {
  detail::validate(o);
  if ((goal.recall > 0) == (goal.footprint > 0) || !(goal.recall <= 1) || !(goal.footprint <= 1)) {
    throw argument_error(status::bad_argument,
                         formatted("calibration: recall {} and footprint {}: one must be above 0, at most 1",
                                   goal.recall, goal.footprint));
  }
  if (config.combine != ensemble::max) {
    throw argument_error(status::unsupported, "calibration: only an ensemble of maxima can be calibrated");
  }
  const detail::dual_model model(config, source.geometry(),
                                 std::int64_t{o.windows.entries_per_chunk} * o.windows.tokens_per_entry);
  held_out h;
  h.logits.resize(config.retrievers.size());
  detail::score_documents(source, model, o, [&](const detail::scored_windows& scored) {
    for (std::size_t w = 0; w < scored.windows.size(); ++w) {
      const window_labels& labels = scored.from->labels[static_cast<std::size_t>(scored.windows[w])];
      const float cost = 1 / static_cast<float>(labels.complete_chunks);
      h.always +=
          static_cast<double>(labels.complete_chunks - labels.candidates()) * static_cast<double>(cost);
      ++h.windows;
      h.positives += static_cast<std::int64_t>(labels.positives.size());
      auto positive = labels.positives.begin();
      for (std::int64_t c = labels.first_candidate; c < labels.end_candidate; ++c) {
        const bool needed =
            positive != labels.positives.end() && static_cast<std::int64_t>(positive->chunk) == c;
        if (needed) ++positive;
        h.needed.push_back(needed);
        h.cost.push_back(cost);
        for (std::size_t r = 0; r < h.logits.size(); ++r) {
          h.logits[r].push_back(
              scored.retrievers[r][static_cast<std::size_t>(c) * scored.windows.size() + w]);
        }
      }
    }
  });
  if (h.windows == 0 || (goal.recall > 0 && h.positives == 0)) {
    throw argument_error(
        status::bad_argument,
        formatted("calibration: {} windows with {} positives were held out", h.windows, h.positives));
  }
  std::vector<double> offsets(h.logits.size(), 0.0);
  operating_point best = sweep(h, combined(h, offsets), goal);
  if (goal.per_layer && h.logits.size() > 1) {
    const auto better = [&](const operating_point& a) {
      return goal.recall > 0 ? a.footprint < best.footprint : a.recall > best.recall;
    };
    for (const double kept : {0.005, 0.01, 0.02, 0.05, 0.1, 0.2}) {
      const std::vector<double> levelled = level(h, kept);
      const operating_point at = sweep(h, combined(h, levelled), goal);
      if (!better(at)) continue;
      best = at;
      offsets = levelled;
    }
  }
  calibration result;
  result.goal = goal;
  result.recall = best.recall;
  result.footprint = best.footprint;
  result.windows = h.windows;
  result.positives = h.positives;
  for (std::size_t r = 0; r < offsets.size(); ++r) {
    result.offsets.push_back(offsets[r] + best.shift);
    config.retrievers[r].logit_offset += static_cast<float>(result.offsets[r]);
  }
  return result;
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
