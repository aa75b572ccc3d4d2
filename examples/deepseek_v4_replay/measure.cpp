// SPDX-License-Identifier: MIT
#include "measure.hpp"

#include <algorithm>
#include <chrono>

namespace replay {

namespace fm = flashmemory;

namespace {

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double x : values) sum += x;
  return values.empty() ? 0 : sum / double(values.size());
}

double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <class F>
std::vector<double> each(const std::vector<step_times>& times, const F& value) {
  std::vector<double> out;
  for (const step_times& t : times) out.push_back(value(t));
  return out;
}

/// Attention's stream waits for a recall, if at all, where a set comes into force, in the step's last part. Where level 1
/// is not due, all of that part beyond its usual length, the median, counts as waiting.
void stalls_of(const std::vector<step_times>& times, mode_result* r) {
  std::vector<double> idle, scored;
  for (const step_times& t : times) (t.scored ? scored : idle).push_back(t.selection);
  const double usual = median_of(idle);
  double sum = 0;
  for (const double part : idle) {
    const double stall = std::max(0.0, part - usual);
    sum += stall;
    r->longest_stall_us = std::max(r->longest_stall_us, stall);
  }
  r->stall_us = idle.empty() ? 0 : sum / double(idle.size());
  r->level1_us = scored.empty() ? 0 : mean_of(scored) - usual;
}

}  // namespace

spread spread_of(std::vector<double> values) {
  spread s;
  if (values.empty()) return s;
  s.mean = mean_of(values);
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[std::min(values.size() - 1, std::size_t(share * double(values.size())))];
  };
  s.p50 = at(0.5);
  s.p99 = at(0.99);
  s.max = values.back();
  return s;
}

mode_result measure(const engine_options& options, const fm::dual_encoder_config& indexer,
                    const planted_directions& directions, std::int64_t warmup, std::int64_t steps,
                    progress_sink& progress) {
  mode_result r;
  r.all_resident = options.all_resident;
  r.rows = options.rows;
  r.context = options.context;
  r.steps = steps;
  progress.update("memory", 0, 1);
  engine e(options, indexer, directions);
  const std::int64_t prompt = options.prompt * options.rows;
  const auto begin = std::chrono::steady_clock::now();
  e.prefill([&](std::int64_t done) { progress.update("prompts", std::min(done, prompt), prompt); });
  r.prefill_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  e.run(warmup, warmup, [&](std::int64_t done) { progress.update("warm-up", done, warmup); });
  const fm::store_counters store_before = e.store_counters();
  const fm::selector_counters before = e.selector_counters();
  const std::vector<step_times> times =
      e.run(steps, 0, [&](std::int64_t done) { progress.update("steps", done, steps); });
  const fm::store_counters store_after = e.store_counters();
  const fm::selector_counters after = e.selector_counters();

  r.step = spread_of(each(times, [](const step_times& t) { return t.step(); }));
  r.graph = spread_of(each(times, [](const step_times& t) { return t.graph; }));
  r.tables = spread_of(each(times, [](const step_times& t) { return t.prepare; }));
  r.host = spread_of(each(times, [](const step_times& t) { return t.host; }));
  stalls_of(times, &r);
  r.refreshes = after.refreshes - before.refreshes;
  r.late = after.late - before.late;
  r.waited = store_after.recalls_waited - store_before.recalls_waited;
  r.max_staleness = after.max_staleness;
  if (r.refreshes > 0) {
    const auto per_refresh = [&](std::int64_t count) { return double(count) / double(r.refreshes); };
    r.staleness = per_refresh(after.staleness - before.staleness);
    r.recalled_bytes = per_refresh(store_after.bytes_recalled - store_before.bytes_recalled);
    const std::int64_t selected = store_after.selected - store_before.selected;
    if (selected > 0) r.changed = double(store_after.recalled - store_before.recalled) / double(selected);
  }
  r.refused = store_after.refused - store_before.refused;
  r.score_us = 1e6 * e.score_seconds();
  const std::vector<double> planted = each(times, [](const step_times& t) { return t.planted_resident; });
  r.planted_resident = mean_of(planted);
  if (!planted.empty()) r.least_planted_resident = *std::min_element(planted.begin(), planted.end());
  r.planted_picked = e.planted_picked();
  r.bytes = e.bytes();
  r.times = times;
  return r;
}

}  // namespace replay
