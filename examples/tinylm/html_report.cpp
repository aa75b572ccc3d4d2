// SPDX-License-Identifier: MIT
#include "html_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>

#include "residency_map.hpp"
#include "svg.hpp"
#include "terminal.hpp"

namespace tinylm {
namespace {

constexpr std::string_view style_sheet = R"(
:root{color-scheme:light dark;--ink:#1d2530;--soft:#5c6673;--rule:#d9dee5;--page:#fff;--wash:#f5f7f9;
--c0:#3d4653;--c1:#1668c7;--c2:#0c8f7a;--c3:#c2620a;--c4:#7d56c2;--c5:#8a8f98;--c6:#b03a5b;--hit:#0c8f7a;--miss:#d1242f;}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#98a2b0;--rule:#333b47;--page:#14181e;--wash:#1c2129;
--c0:#c3cad4;--c1:#5aa2f0;--c2:#35bfa6;--c3:#e8913f;--c4:#ab8ae6;--c5:#8a93a0;--c6:#e0708f;--hit:#35bfa6;--miss:#ff6b6b;}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,li,figcaption,summary span{color:var(--soft)}figure{margin:0}.grid{display:grid;gap:1.2rem;grid-template-columns:repeat(auto-fit,minmax(330px,1fr))}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}th:first-child,td:first-child{text-align:left}
tr.strong td{font-weight:600}svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--soft)}
.end{text-anchor:end}.mid{text-anchor:middle}.rule{stroke:var(--rule)}.frame{fill:var(--wash)}.mark{stroke:var(--page);stroke-width:1}
.p0{fill:var(--c0)}.p1{fill:var(--c1)}.p2{fill:var(--c2)}.p3{fill:var(--c3)}.p4{fill:var(--c4)}.p5{fill:var(--c5)}.p6{fill:var(--c6)}
.l0{stroke:var(--c0)}.l1{stroke:var(--c1)}.l2{stroke:var(--c2)}.l3{stroke:var(--c3)}.l4{stroke:var(--c4)}.l5{stroke:var(--c5)}.l6{stroke:var(--c6)}
polyline{fill:none;stroke-width:1.2}.resident{fill:var(--c1);opacity:.45}.refresh{stroke:var(--rule)}
.hit{fill:none;stroke:var(--hit);stroke-width:1.6}.miss{fill:none;stroke:var(--miss);stroke-width:1.6}
.key{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin:0 .3em 0 .9em;vertical-align:-.05em}
.b0{background:var(--c0)}.b1{background:var(--c1)}.b2{background:var(--c2)}.b3{background:var(--c3)}.b4{background:var(--c4)}
.b5{background:var(--c5)}.b6{background:var(--c6)}details{border-top:1px solid var(--rule);padding:.5rem 0}summary{cursor:pointer}
)";

/// One colour a policy, whatever its budget; the order is fixed so that two reports agree.
std::size_t colour_of(const policy_cell& cell) {
  constexpr std::string_view order[] = {"full",          "lsa",    "oracle", "quest",
                                        "lsa-threshold", "random", "recency"};
  const auto at = std::find(std::begin(order), std::end(order), cell.name);
  return static_cast<std::size_t>(at - std::begin(order)) % 7;
}

template <class... Args>
void put(std::string& page, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(page), format, std::forward<Args>(args)...);
}

std::string length_text(std::int64_t length) {
  return length == 0 ? "all lengths" : fmt::format("{} tokens", length);
}

std::string legend(const std::vector<policy_cell>& cells) {
  std::string out = "<p>";
  std::vector<std::string> seen;
  for (const auto& cell : cells) {
    if (std::find(seen.begin(), seen.end(), cell.name) != seen.end()) continue;
    seen.push_back(cell.name);
    put(out, "<span class='key b{}'></span>{}", colour_of(cell), html_text(cell.name));
  }
  return out + "</p>\n";
}

/// Found answers over fast-tier bytes; the mean of all tasks of one length.
std::string accuracy_chart(const std::vector<eval_summary>& summaries, std::int64_t length) {
  constexpr double width = 440, height = 300, left = 40, right = 425, top = 14, bottom = 262;
  const axis x(1, 100, left, right, true), y(0, 100, bottom, top, false);
  svg chart(width, height, fmt::format("Answers found over KV bytes, {}", length_text(length)));
  chart.rect(left, top, right - left, bottom - top, "frame");
  for (const double tick : {0.0, 25.0, 50.0, 75.0, 100.0}) {
    chart.line(left, y.at(tick), right, y.at(tick), "rule");
    chart.text(left - 5, y.at(tick) + 4, fmt::format("{:g}", tick), "end");
  }
  for (const double tick : {1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0}) {
    chart.line(x.at(tick), top, x.at(tick), bottom, "rule");
    chart.text(x.at(tick), bottom + 14, fmt::format("{:g}", tick), "mid");
  }
  chart.text((left + right) / 2, bottom + 31, "fast-tier bytes, % of the full KV (logarithmic)", "mid");
  chart.text(left, 9, "answers found, %", "");
  for (const auto& s : summaries) {
    if (s.task != "all" || s.length != length) continue;
    const std::size_t colour = colour_of(*s.cell);
    chart.mark(x.at(100 * s.mean_fraction), y.at(100 * s.accuracy), colour, fmt::format("p{}", colour),
               fmt::format("{}: {:.1f} % found with {:.1f} % of the bytes", s.cell->label(), 100 * s.accuracy,
                           100 * s.mean_fraction));
  }
  return fmt::format("<figure><h3>{}</h3>{}</figure>\n", length_text(length), chart.str());
}

/// Milliseconds of every step of one prompt, a line a policy.
std::string time_chart(const std::vector<const eval_result*>& runs) {
  constexpr double width = 900, height = 240, left = 44, right = 885, top = 14, bottom = 205;
  double low = 1e9, high = 0;
  std::size_t steps = 1;
  for (const auto* run : runs) {
    steps = std::max(steps, run->run.step_seconds.size());
    for (const double s : run->run.step_seconds) {
      low = std::min(low, 1e3 * s);
      high = std::max(high, 1e3 * s);
    }
  }
  if (high <= 0) return {};
  low = std::pow(10, std::floor(std::log10(std::max(low, 1e-3))));
  high = std::pow(10, std::ceil(std::log10(high * 1.0001)));
  const axis x(0, static_cast<double>(steps), left, right, false), y(low, high, bottom, top, true);
  svg chart(width, height, "Time of each step");
  chart.rect(left, top, right - left, bottom - top, "frame");
  for (double tick = low; tick <= high * 1.001; tick *= 10) {
    chart.line(left, y.at(tick), right, y.at(tick), "rule");
    chart.text(left - 5, y.at(tick) + 4, fmt::format("{:g}", tick), "end");
  }
  const std::size_t every = std::max<std::size_t>(16, (steps / 8 + 15) / 16 * 16);
  for (std::size_t tick = 0; tick <= steps; tick += every)
    chart.text(x.at(static_cast<double>(tick)), bottom + 14, fmt::format("{}", tick), "mid");
  chart.text(left, 9, "ms (logarithmic)", "");
  chart.text((left + right) / 2, bottom + 30, "generated token", "mid");
  for (const auto* run : runs) {
    std::vector<double> xs, ys;
    for (std::size_t i = 0; i < run->run.step_seconds.size(); ++i) {
      xs.push_back(x.at(static_cast<double>(i)));
      ys.push_back(y.at(1e3 * run->run.step_seconds[i]));
    }
    chart.polyline(xs, ys, fmt::format("l{}", colour_of(*run->cell)));
  }
  return chart.str();
}

void add_table(std::string& page, const std::vector<eval_summary>& summaries) {
  page +=
      "<div class='scroll'><table><tr><th>length</th><th>task</th><th>policy</th><th>prompts</th><th>found "
      "%</th>"
      "<th>all %</th><th>chunks kept %</th><th>KV bytes %</th><th>peak %</th><th>tok/s</th><th>step p50 "
      "ms</th>"
      "<th>p99 ms</th></tr>\n";
  for (const auto& s : summaries) {
    put(page,
        "<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.1f}</td><td>{:.1f}</td>"
        "<td>{:.1f}</td><td>{:.1f}</td><td>{:.0f}</td><td>{:.2f}</td><td>{:.2f}</td></tr>\n",
        s.task == "all" ? " class='strong'" : "", s.length == 0 ? "all" : fmt::format("{}", s.length),
        html_text(s.task), html_text(s.cell->label()), s.prompts, 100 * s.accuracy, 100 * s.all_right,
        100 * s.kept, 100 * s.mean_fraction, 100 * s.peak_fraction, s.tokens_per_second, 1e3 * s.step_p50,
        1e3 * s.step_p99);
  }
  page += "</table></div>\n";
}

/// The results of one prompt, in the cells' order.
std::vector<const eval_result*> runs_of(const std::vector<eval_result>& results, const task_record* task) {
  std::vector<const eval_result*> runs;
  for (const auto& r : results)
    if (r.task == task) runs.push_back(&r);
  return runs;
}

void add_prompt(std::string& page, const std::vector<const eval_result*>& runs, std::int64_t tokens_per_chunk,
                bool open) {
  const task_record& task = *runs.front()->task;
  put(page, "<details{}><summary>{}, {} <span>({} answers, {} prompt tokens)</span></summary>\n",
      open ? " open" : "", html_text(task.task), length_text(task.length), task.answers.size(),
      task.prompt_tokens);
  for (const auto* run : runs) {
    if (run->cell->full() || run->run.refreshes.empty()) continue;
    double recalled = 0;
    for (const auto& r : run->run.refreshes) recalled += static_cast<double>(r.bytes_recalled);
    const auto spans = residency_spans(run->run, task.prompt_tokens, tokens_per_chunk);
    put(page,
        "<h3>{} <span>{} of {} answers right, {} of {} had their chunks, {:.1f} % of the bytes, recalls of "
        "{}</span></h3>\n",
        html_text(run->cell->label()), run->answer.found, run->answer.expected,
        covered_answers(spans, task.need, tokens_per_chunk), task.need.size(), 100 * run->run.mean_fraction(),
        bytes_text(recalled));
    page += residency_map(*run, tokens_per_chunk);
  }
  page += "<h3>Time of each step</h3>\n" + time_chart(runs) + "</details>\n";
}

}  // namespace

std::string html_report(const report_facts& facts, const std::vector<eval_result>& results,
                        const std::vector<eval_summary>& summaries, const std::vector<policy_cell>& cells) {
  std::string page;
  put(page,
      "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
      "content='width=device-width'><title>{0}</title><style>{1}</style></head><body>\n<h1>{0}</h1>\n<ul>\n",
      html_text(facts.title), style_sheet);
  for (const auto& line : facts.lines) put(page, "<li>{}</li>\n", html_text(line));
  page += "</ul>\n<h2>Answers found against bytes in the fast tier</h2>\n" + legend(cells) +
          "<p>Mean over all tasks. Bytes are slots, index keys and tables of a sequence over the K and V of "
          "the same "
          "tokens.</p>\n<div class='grid'>\n";
  std::vector<std::int64_t> lengths;
  for (const auto& s : summaries)
    if (s.task == "all" && std::find(lengths.begin(), lengths.end(), s.length) == lengths.end())
      lengths.push_back(s.length);
  for (const auto length : lengths) page += accuracy_chart(summaries, length);
  page += "</div>\n<h2>Every task</h2>\n";
  add_table(page, summaries);

  page +=
      "<h2>What was resident, step by step</h2>\n<p>The first prompt of each length and task. A row is a "
      "generated "
      "token, a column a chunk; blue chunks were resident. Boxes are the chunks that hold an answer, at the "
      "tokens "
      "that spell it: green where they were resident, red where not.</p>\n" +
      legend(cells);
  std::map<std::pair<std::int64_t, std::string>, const task_record*> shown;
  for (const auto& r : results) shown.try_emplace({r.task->length, r.task->task}, r.task);
  std::size_t most = 0;
  for (const auto& [key, task] : shown) most = std::max(most, task->answers.size());
  for (const auto& [key, task] : shown)
    add_prompt(page, runs_of(results, task), facts.tokens_per_chunk, task->answers.size() == most);
  return page + "</body></html>\n";
}

}  // namespace tinylm
