// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <cmath>
#include <flashmemory/error.hpp>
#include <functional>
#include <map>
#include <numeric>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/train/calibrate/scoring.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

// Sums of one group, turned into shares at the end.
struct tally {
  std::int64_t windows = 0, needing = 0, positives = 0, above = 0, needless = 0, needless_kept = 0,
               with_mass = 0;
  double footprint = 0;
  struct at_budget {
    std::int64_t found = 0;
    double coverage = 0, oracle = 0;
  };
  std::vector<at_budget> budgets;
};

struct choice {
  std::vector<std::int64_t> by_score;  // candidates, best first
  std::vector<std::int64_t> by_mass;
};

// Score descending, then newer chunk first, as selection ranks.
std::vector<std::int64_t> ranked(std::int64_t first, std::int64_t end,
                                 const std::function<double(std::int64_t)>& key) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(end - first));
  std::iota(order.begin(), order.end(), first);
  std::sort(order.begin(), order.end(),
            [&](std::int64_t a, std::int64_t b) { return key(a) != key(b) ? key(a) > key(b) : a > b; });
  return order;
}

void add_window(const detail::scored_windows& scored, std::size_t w, const window_labels& labels,
                const window_mass& mass, const evaluation_options& o, const std::vector<tally*>& groups) {
  const auto score = [&](std::int64_t c) {
    return static_cast<double>(scored.combined[static_cast<std::size_t>(c) * scored.windows.size() + w]);
  };
  const auto mass_of = [&](std::int64_t c) { return mass.sum[static_cast<std::size_t>(c)]; };
  const std::int64_t first = labels.first_candidate;
  const std::int64_t end = labels.end_candidate;
  const std::vector<std::int64_t> by_score = ranked(first, end, score);
  const std::vector<std::int64_t> by_mass = ranked(first, end, mass_of);
  const auto above =
      std::count_if(by_score.begin(), by_score.end(), [&](std::int64_t c) { return score(c) > 0; });
  double total = 0;
  for (const std::int64_t c : by_mass) total += mass_of(c);
  std::vector<char> needed(static_cast<std::size_t>(end), 0);
  for (const positive_chunk& p : labels.positives) needed[static_cast<std::size_t>(p.chunk)] = 1;
  std::int64_t found_above = 0;
  for (const positive_chunk& p : labels.positives)
    found_above += score(static_cast<std::int64_t>(p.chunk)) > 0;
  const std::int64_t always = labels.complete_chunks - labels.candidates();
  for (tally* t : groups) {
    ++t->windows;
    t->needing += !labels.positives.empty();
    t->positives += static_cast<std::int64_t>(labels.positives.size());
    t->above += found_above;
    t->footprint += static_cast<double>(always + above) / static_cast<double>(labels.complete_chunks);
    if (labels.positives.empty()) {
      t->needless += labels.candidates();
      t->needless_kept += above;
    }
    t->with_mass += total > 0;
  }
  for (std::size_t b = 0; b < o.budgets.size(); ++b) {
    const auto whole =
        static_cast<std::int64_t>(std::llround(o.budgets[b] * static_cast<double>(labels.complete_chunks)));
    const auto k = static_cast<std::size_t>(std::clamp<std::int64_t>(whole - always, 1, labels.candidates()));
    std::int64_t found = 0;
    double covered = 0;
    double best = 0;
    for (std::size_t i = 0; i < k; ++i) {
      found += needed[static_cast<std::size_t>(by_score[i])];
      covered += mass_of(by_score[i]);
      best += mass_of(by_mass[i]);
    }
    for (tally* t : groups) {
      t->budgets[b].found += found;
      if (total <= 0) continue;
      t->budgets[b].coverage += covered / total;
      t->budgets[b].oracle += best / total;
    }
  }
}

double share(double part, double whole, double of_none) { return whole > 0 ? part / whole : of_none; }

group_result finish(const std::string& name, const tally& t, const std::vector<double>& budgets) {
  group_result g;
  g.name = name;
  g.windows = t.windows;
  g.needing = t.needing;
  g.positives = t.positives;
  const auto positives = static_cast<double>(t.positives);
  g.threshold_recall = share(static_cast<double>(t.above), positives, 1);
  g.threshold_footprint = share(t.footprint, static_cast<double>(t.windows), 0);
  g.needless_kept = share(static_cast<double>(t.needless_kept), static_cast<double>(t.needless), 0);
  for (std::size_t b = 0; b < budgets.size(); ++b) {
    budget_result r;
    r.budget = budgets[b];
    r.recall = share(static_cast<double>(t.budgets[b].found), positives, 1);
    r.coverage = share(t.budgets[b].coverage, static_cast<double>(t.with_mass), 1);
    r.oracle_coverage = share(t.budgets[b].oracle, static_cast<double>(t.with_mass), 1);
    g.budgets.push_back(r);
  }
  return g;
}

}  // namespace

evaluation evaluate(const document_source& source, const dual_encoder_config& config,
                    const evaluation_options& o) {
  detail::validate(o);
  const auto begin = std::chrono::steady_clock::now();
  const detail::dual_model model(config, source.geometry(),
                                 std::int64_t{o.windows.entries_per_chunk} * o.windows.tokens_per_entry);
  tally all;
  std::map<std::string, tally> tags;
  std::map<std::int64_t, tally> buckets;
  all.budgets.resize(o.budgets.size());
  evaluation result;
  std::int64_t last = -1;
  detail::score_documents(source, model, o, [&](const detail::scored_windows& scored) {
    if (scored.from->index != last) ++result.documents;
    last = scored.from->index;
    for (std::size_t w = 0; w < scored.windows.size(); ++w) {
      const window_labels& labels = scored.from->labels[static_cast<std::size_t>(scored.windows[w])];
      std::int64_t bucket = o.position_bucket;
      while (labels.position >= bucket) bucket *= 2;
      tally& tag = tags[scored.from->tag];
      tally& place = buckets[bucket];
      tag.budgets.resize(o.budgets.size());
      place.budgets.resize(o.budgets.size());
      add_window(scored, w, labels, mass_of_window(*scored.doc, labels.position, o.windows, o.labels.layer),
                 o, {&all, &tag, &place});
    }
  });
  result.groups.push_back(finish("all", all, o.budgets));
  for (const auto& [name, t] : tags) result.groups.push_back(finish("tag " + name, t, o.budgets));
  for (const auto& [below, t] : buckets) {
    const std::int64_t from = below == o.position_bucket ? 0 : below / 2;
    result.groups.push_back(finish(formatted("position {}-{}", from, below), t, o.budgets));
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

std::string to_table(const evaluation& e) {
  if (e.groups.empty()) return {};
  std::string out = formatted("{:<26} {:>8} {:>8}", "recall / coverage / oracle %", "windows", "needs");
  for (const budget_result& b : e.groups.front().budgets)
    out += formatted(" {:>15}", formatted("{:.1f}% kept", 100 * b.budget));
  out += formatted(" {:>17} {:>9}\n", "logit > 0: rec/kept", "needless");
  for (const group_result& g : e.groups) {
    out += formatted("{:<28} {:>6} {:>8}", g.name, g.windows, g.positives);
    for (const budget_result& b : g.budgets) {
      out += formatted("  {:>4.1f}/{:>4.1f}/{:>4.1f}", 100 * b.recall, 100 * b.coverage,
                       100 * b.oracle_coverage);
    }
    out += formatted("   {:>7.1f} /{:>7.2f} {:>9.2f}\n", 100 * g.threshold_recall,
                     100 * g.threshold_footprint, 100 * g.needless_kept);
  }
  return out;
}

std::string to_json(const evaluation& e) {
  nlohmann::json groups = nlohmann::json::array();
  for (const group_result& g : e.groups) {
    nlohmann::json budgets = nlohmann::json::array();
    for (const budget_result& b : g.budgets) {
      budgets.push_back({{"budget", b.budget},
                         {"recall", b.recall},
                         {"coverage", b.coverage},
                         {"oracle_coverage", b.oracle_coverage}});
    }
    groups.push_back({{"name", g.name},
                      {"windows", g.windows},
                      {"needing", g.needing},
                      {"positives", g.positives},
                      {"threshold_recall", g.threshold_recall},
                      {"threshold_footprint", g.threshold_footprint},
                      {"needless_kept", g.needless_kept},
                      {"budgets", budgets}});
  }
  return json_text(nlohmann::json{{"documents", e.documents}, {"groups", groups}},
                   nlohmann::json::error_handler_t::replace);
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
