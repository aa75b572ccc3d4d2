// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

namespace replay {

namespace {

using json = nlohmann::ordered_json;

constexpr int label_width = 42, cell_width = 14;

std::string context_text(std::int64_t tokens) {
  return tokens % (1 << 20) == 0 ? fmt::format("{}M", tokens >> 20) : fmt::format("{}K", tokens >> 10);
}

/// Rows of one number per context and mode.
class table {
 public:
  explicit table(const std::vector<comparison>& results) : results_(results) {}

  void line(const std::string& label, const std::string& format,
            const std::function<double(const mode_result&)>& value, bool both = true) {
    text += fmt::format("{:<{}}", label, label_width);
    for (const comparison& c : results_) {
      text += fmt::format("{:>{}}", both ? cell(format, value(c.all_resident)) : "-", cell_width);
      text += fmt::format("{:>{}}", cell(format, value(c.flashmemory)), cell_width);
    }
    text += "\n";
  }

  void ratio(const std::string& label, const std::function<double(const comparison&)>& value) {
    text += fmt::format("{:<{}}", label, label_width);
    for (const comparison& c : results_)
      text += fmt::format("{:>{}}", fmt::format("{:.2f}x", value(c)), 2 * cell_width);
    text += "\n";
  }

  void heading() {
    text += fmt::format("{:<{}}", "", label_width);
    for (const comparison& c : results_)
      text += fmt::format(
          "{:>{}}",
          fmt::format("{} tokens, batch {}", context_text(c.flashmemory.context), c.flashmemory.rows),
          2 * cell_width);
    text += fmt::format("\n{:<{}}", "", label_width);
    for (std::size_t i = 0; i < results_.size(); ++i)
      text += fmt::format("{:>{}}{:>{}}", "all resident", cell_width, "flashmemory", cell_width);
    text += "\n";
  }

  std::string text;

 private:
  static std::string cell(const std::string& format, double value) {
    return fmt::format(fmt::runtime(format), value);
  }
  const std::vector<comparison>& results_;
};

json spread_json(const spread& s) {
  return {{"mean", s.mean}, {"p50", s.p50}, {"p99", s.p99}, {"max", s.max}};
}

json mode_json(const mode_result& r) {
  json j;
  j["mode"] = r.all_resident ? "all_resident" : "flashmemory";
  j["context_tokens"] = r.context;
  j["sequences"] = r.rows;
  j["steps"] = r.steps;
  j["step_us"] = spread_json(r.step);
  j["graph_us"] = spread_json(r.graph);
  j["host_us"] = spread_json(r.host);
  j["tables_us"] = spread_json(r.tables);
  j["level1_device_us"] = r.level1_us;
  j["level1_until_scores_us"] = r.score_us;
  j["stall_us_per_step"] = r.stall_us;
  j["longest_stall_us"] = r.longest_stall_us;
  j["refreshes"] = r.refreshes;
  j["late_refreshes"] = r.late;
  j["waited_refreshes"] = r.waited;
  j["staleness_steps"] = {{"mean", r.staleness}, {"max", r.max_staleness}};
  j["changed_share"] = r.changed;
  j["recalled_bytes_per_refresh"] = r.recalled_bytes;
  j["refused_chunks"] = r.refused;
  j["planted_resident"] = {{"mean", r.planted_resident}, {"min", r.least_planted_resident}};
  j["planted_picked_by_level2"] = r.planted_picked;
  j["prefill_seconds"] = r.prefill_seconds;
  const device_bytes& b = r.bytes;
  j["gpu_bytes"] = {{"per_sequence", b.per_sequence()},
                    {"slots", b.slots},
                    {"target_layer_keys", b.keys},
                    {"tables", b.tables},
                    {"window_and_hca", b.caches},
                    {"scores_and_lists", b.scratch},
                    {"fixed_transition_pool", b.transition},
                    {"fixed_level1", b.level1}};
  j["sequences_in_budget"] = r.sequences;
  json& series = j["series_us"];  // of each step, to a tenth
  const auto list = [&](const char* name, const std::function<double(const step_times&)>& value) {
    for (const step_times& t : r.times) series[name].push_back(std::round(10 * value(t)) / 10);
  };
  list("prepare", [](const step_times& t) { return t.prepare; });
  list("graph", [](const step_times& t) { return t.graph; });
  list("selection", [](const step_times& t) { return t.selection; });
  list("host", [](const step_times& t) { return t.host; });
  return j;
}

}  // namespace

std::string table_text(const std::vector<comparison>& results, const circumstances& about) {
  const auto ms = [](double us) { return us / 1e3; };
  const auto mb = [](double bytes) { return bytes / 1e6; };
  table t(results);
  t.text += fmt::format(
      "DeepSeek-V4-Flash decode on {}: attention and both indexer levels of 43 layers (2 window, 21 CSA, 20 "
      "HCA),\n"
      "random weights and keys with planted topics; no projections, no MoE. Memory reads {:.2f} TB/s, pinned "
      "copies "
      "{:.1f} GB/s.\n"
      "flashmemory keeps {:.0f} % of the chunks, chosen anew every {} steps; {:.0f} % of a topic's chunks "
      "change from "
      "one to the next.\n\n",
      about.device, about.read_bytes_per_second / 1e12, about.copy_bytes_per_second / 1e9,
      100 * about.budget_fraction, about.interval, 100 * about.drift);
  t.heading();
  t.line("step, mean (ms)", "{:.3f}", [&](const mode_result& r) { return ms(r.step.mean); });
  t.line("step, p50 (ms)", "{:.3f}", [&](const mode_result& r) { return ms(r.step.p50); });
  t.line("step, p99 (ms)", "{:.3f}", [&](const mode_result& r) { return ms(r.step.p99); });
  t.line("  of it the captured graph, mean (ms)", "{:.3f}",
         [&](const mode_result& r) { return ms(r.graph.mean); });
  t.line("  tables brought up to date, mean (ms)", "{:.3f}",
         [&](const mode_result& r) { return ms(r.tables.mean); });
  t.ratio("all resident / flashmemory, mean step",
          [](const comparison& c) { return c.all_resident.step.mean / c.flashmemory.step.mean; });
  t.line("host calls per step, mean (ms)", "{:.3f}", [&](const mode_result& r) { return ms(r.host.mean); });
  t.line(
      "level 1, device, a step where due (ms)", "{:.3f}",
      [&](const mode_result& r) { return ms(r.level1_us); }, false);
  t.line(
      "level 1, until the host has scores (ms)", "{:.3f}",
      [&](const mode_result& r) { return ms(r.score_us); }, false);
  t.line(
      "staleness of a set, mean (steps)", "{:.1f}", [](const mode_result& r) { return r.staleness; }, false);
  t.line(
      "recalled per refresh (MB)", "{:.1f}", [&](const mode_result& r) { return mb(r.recalled_bytes); },
      false);
  t.line(
      "  share of the set that changed (%)", "{:.1f}", [](const mode_result& r) { return 100 * r.changed; },
      false);
  t.line(
      "stall: attention waits for recalls (us/step)", "{:.2f}",
      [](const mode_result& r) { return r.stall_us; }, false);
  t.line(
      "  longest in one step (us)", "{:.1f}", [](const mode_result& r) { return r.longest_stall_us; }, false);
  t.line(
      "refreshes late or waited for", "{:.0f}",
      [](const mode_result& r) { return double(r.late + r.waited); }, false);
  t.line(
      "planted chunks resident, mean (%)", "{:.2f}",
      [](const mode_result& r) { return 100 * r.planted_resident; }, false);
  t.line("of theirs, entries that level 2 picked (%)", "{:.1f}",
         [](const mode_result& r) { return 100 * r.planted_picked; });
  t.line("GPU memory per sequence (MB)", "{:.1f}",
         [&](const mode_result& r) { return mb(double(r.bytes.per_sequence())); });
  t.line("  slots", "{:.1f}", [&](const mode_result& r) { return mb(double(r.bytes.slots)); });
  t.line("  target-layer keys", "{:.1f}", [&](const mode_result& r) { return mb(double(r.bytes.keys)); });
  t.line("  window and HCA", "{:.1f}", [&](const mode_result& r) { return mb(double(r.bytes.caches)); });
  t.line("  tables, scores, lists", "{:.1f}",
         [&](const mode_result& r) { return mb(double(r.bytes.tables + r.bytes.scratch)); });
  t.line("GPU memory beside sequences (MB)", "{:.1f}",
         [&](const mode_result& r) { return mb(double(r.bytes.fixed())); });
  t.line(fmt::format("sequences that fit in {:.1f} GB", double(about.gpu_bytes) / 1e9), "{:.0f}",
         [](const mode_result& r) { return double(r.sequences); });
  t.ratio("flashmemory / all resident, sequences", [](const comparison& c) {
    return double(c.flashmemory.sequences) / double(std::max<std::int64_t>(c.all_resident.sequences, 1));
  });
  t.text +=
      "\nWhat the paper's code reports for the same shapes, the whole model on 8x H20 (TP8), other GPUs than "
      "this one:\n"
      "  concurrent requests, all resident -> theirs: 256K 47 -> 76 (1.6x), 512K 25 -> 60 (2.4x), 1M 11 -> "
      "30 (2.7x; "
      "40 with 96 pages);\n"
      "  tokens/s of all requests: 1584 -> 2759, 1028 -> 2008, 455 -> 1266; tokens/s of one request hardly "
      "change;\n"
      "  level 1: 14 ms of scoring, about 20 ms in all; KV per sequence at 1M 3.76 GiB -> 0.37 GiB, "
      "target-layer keys not "
      "counted.\n";
  return t.text;
}

std::string json_text(const std::vector<comparison>& results, const circumstances& about) {
  json j;
  j["device"] = about.device;
  j["memory_read_bytes_per_second"] = about.read_bytes_per_second;
  j["pinned_copy_bytes_per_second"] = about.copy_bytes_per_second;
  j["gpu_budget_bytes"] = about.gpu_bytes;
  j["interval"] = about.interval;
  j["budget_fraction"] = about.budget_fraction;
  j["drift"] = about.drift;
  for (const comparison& c : results) {
    j["results"].push_back(mode_json(c.all_resident));
    j["results"].push_back(mode_json(c.flashmemory));
  }
  return j.dump() + "\n";
}

}  // namespace replay
