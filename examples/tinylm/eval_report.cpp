// SPDX-License-Identifier: MIT
#include "eval_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "terminal.hpp"

namespace tinylm {
namespace {

eval_summary summarise_if(const std::vector<eval_result>& results, const policy_cell& cell,
                          const std::string& task, std::int64_t length) {
  eval_summary s;
  s.task = task.empty() ? "all" : task;
  s.length = length;
  s.cell = &cell;
  std::vector<double> steps, rests;
  double seconds = 0, attention = 0;
  for (const auto& r : results) {
    if (r.cell != &cell || (!task.empty() && r.task->task != task) ||
        (length != 0 && r.task->length != length))
      continue;
    ++s.prompts;
    s.accuracy += r.answer.fraction();
    s.all_right += r.answer.all();
    s.mean_fraction += r.run.mean_fraction();
    s.peak_fraction = std::max(s.peak_fraction, r.run.peak_fraction());
    s.mean_bytes += r.run.mean_bytes();
    s.peak_bytes = std::max(s.peak_bytes, static_cast<double>(r.run.peak_bytes()));
    s.kept += r.run.kept_fraction();
    steps.insert(steps.end(), r.run.step_seconds.begin(), r.run.step_seconds.end());
    seconds += r.run.seconds();
    for (std::size_t i = 0; i < r.run.step_seconds.size(); ++i) {
      attention += r.run.attention_seconds[i];
      rests.push_back(r.run.step_seconds[i] - r.run.attention_seconds[i]);
    }
  }
  if (s.prompts == 0) return s;
  const auto n = static_cast<double>(s.prompts);
  for (double* mean : {&s.accuracy, &s.all_right, &s.mean_fraction, &s.mean_bytes, &s.kept}) *mean /= n;
  s.tokens_per_second = seconds > 0 ? static_cast<double>(steps.size()) / seconds : 0;
  s.attention_share = seconds > 0 ? attention / seconds : 0;
  s.rest_p50 = quantile(std::move(rests), 0.5);
  s.step_p50 = quantile(steps, 0.5);
  s.step_p99 = quantile(std::move(steps), 0.99);
  return s;
}

template <class T, class F>
std::vector<T> distinct(const std::vector<eval_result>& results, const F& value) {
  std::vector<T> seen;
  for (const auto& r : results) {
    T v = value(r);
    if (std::find(seen.begin(), seen.end(), v) == seen.end()) seen.push_back(std::move(v));
  }
  return seen;
}

void print_row(const eval_summary& s, const style& look, bool strong) {
  const std::string row = fmt::format(
      "{:<7} {:<16} {:<16} {:>4}  {:>6.1f} {:>6.1f}  {:>6.1f} {:>6.1f} {:>9} {:>9}  {:>7.0f} {:>7.2f} "
      "{:>7.2f}",
      s.length == 0 ? std::string("all") : fmt::format("{}", s.length), s.task, s.cell->label(), s.prompts,
      100 * s.accuracy, 100 * s.all_right, 100 * s.kept, 100 * s.mean_fraction, bytes_text(s.mean_bytes),
      bytes_text(s.peak_bytes), s.tokens_per_second, 1e3 * s.step_p50, 1e3 * s.step_p99);
  fmt::print("{}\n", strong ? look.bold(row) : row);
}

}  // namespace

std::vector<eval_summary> summarise(const std::vector<eval_result>& results,
                                    const std::vector<policy_cell>& cells) {
  auto lengths = distinct<std::int64_t>(results, [](const auto& r) { return r.task->length; });
  std::sort(lengths.begin(), lengths.end());
  std::vector<eval_summary> out;
  const auto add = [&](const std::string& task, std::int64_t length) {
    for (const auto& cell : cells) {
      auto s = summarise_if(results, cell, task, length);
      if (s.prompts > 0) out.push_back(std::move(s));
    }
  };
  for (const std::int64_t length : lengths) {
    const auto tasks = distinct<std::string>(results, [](const auto& r) { return r.task->task; });
    for (const auto& task : tasks) add(task, length);
    if (lengths.size() > 1) add("", length);
  }
  add("", 0);
  return out;
}

void print_table(const std::vector<eval_summary>& summaries) {
  const style look = stdout_style();
  fmt::print("{}\n", look.bold(fmt::format(
                         "{:<7} {:<16} {:<16} {:>4}  {:>6} {:>6}  {:>6} {:>6} {:>9} {:>9}  {:>7} {:>7} {:>7}",
                         "length", "task", "policy", "n", "found%", "all%", "kept%", "fast%", "fast avg",
                         "fast peak", "tok/s", "p50 ms", "p99 ms")));
  std::string group;
  for (const auto& s : summaries) {
    const std::string now = fmt::format("{} {}", s.length, s.task);
    if (!group.empty() && now != group) fmt::print("\n");
    group = now;
    print_row(s, look, s.length == 0);
  }
  fmt::print(
      "\nfound%: expected answers found; all%: prompts with all of them; kept%: complete chunks kept at a "
      "refresh;\n"
      "fast%: mean fast-tier bytes of the sequence (slots, index, tables) over its K and V when all are "
      "resident.\n\n");
  const eval_summary* full = nullptr;
  for (const auto& s : summaries) {
    if (s.length == 0 && s.cell->full()) full = &s;
  }
  for (const auto& s : summaries) {
    if (s.length != 0) continue;
    const std::string speed =
        full != nullptr && full != &s && full->tokens_per_second > 0
            ? fmt::format(" ({:.2f}x full)", s.tokens_per_second / full->tokens_per_second)
            : "";
    fmt::print(
        "{:<16} {:5.1f} % of the answers, {:5.1f} % of the prompts, with {:5.1f} % of the KV bytes (peak "
        "{:.1f} %), {:.0f} tok/s{}\n",
        s.cell->label(), 100 * s.accuracy, 100 * s.all_right, 100 * s.mean_fraction, 100 * s.peak_fraction,
        s.tokens_per_second, speed);
  }
}

nlohmann::json to_json(const eval_summary& s) {
  return {{"task", s.task},
          {"length", s.length},
          {"policy", s.cell->name},
          {"budget", s.cell->budget},
          {"threshold", s.cell->threshold},
          {"hysteresis", s.cell->hysteresis},
          {"prompts", s.prompts},
          {"accuracy", s.accuracy},
          {"all_right", s.all_right},
          {"kept_fraction", s.kept},
          {"fast_bytes_mean", s.mean_bytes},
          {"fast_bytes_peak", s.peak_bytes},
          {"fast_fraction_mean", s.mean_fraction},
          {"fast_fraction_peak", s.peak_fraction},
          {"tokens_per_second", s.tokens_per_second},
          {"step_seconds_p50", s.step_p50},
          {"step_seconds_p99", s.step_p99},
          {"attention_share", s.attention_share},
          {"step_seconds_p50_without_attention", s.rest_p50}};
}

nlohmann::json to_json(const eval_result& r) {
  nlohmann::json refreshes = nlohmann::json::array();
  for (const auto& f : r.run.refreshes) {
    refreshes.push_back({{"tokens", f.tokens},
                         {"complete_chunks", f.complete_chunks},
                         {"kept_chunks", f.kept_chunks},
                         {"bytes_recalled", f.bytes_recalled},
                         {"seconds", f.seconds},
                         {"resident", f.resident}});
  }
  return {{"id", r.task->id},
          {"task", r.task->task},
          {"length", r.task->length},
          {"policy", r.cell->name},
          {"budget", r.cell->budget},
          {"threshold", r.cell->threshold},
          {"hysteresis", r.cell->hysteresis},
          {"text", r.run.text},
          {"ended", r.run.ended},
          {"answers", r.task->answers},
          {"found", r.answer.found},
          {"accuracy", r.answer.fraction()},
          {"all_right", r.answer.all()},
          {"kept_fraction", r.run.kept_fraction()},
          {"fast_bytes_mean", r.run.mean_bytes()},
          {"fast_bytes_peak", r.run.peak_bytes()},
          {"fast_fraction_mean", r.run.mean_fraction()},
          {"fast_fraction_peak", r.run.peak_fraction()},
          {"steps", r.run.step_seconds.size()},
          {"seconds", r.run.seconds()},
          {"refreshes", std::move(refreshes)}};
}

}  // namespace tinylm
