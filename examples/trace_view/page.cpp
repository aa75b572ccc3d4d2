// SPDX-License-Identifier: MIT
#include "page.hpp"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "page_css.hpp"
#include "page_js.hpp"
#include "picture.hpp"

namespace trace_view {
namespace {

using json = nlohmann::ordered_json;

json runs(const std::vector<chunk_run>& resident) {
  json out = json::array();
  for (const chunk_run& run : resident) out.push_back({run.first, run.end - run.first});
  return out;
}

/// Three digits: it is a hint, and there are many.
json short_number(float value) {
  if (!std::isfinite(value)) return nullptr;
  return json::parse(fmt::format("{:.3g}", value), nullptr, false);
}

json numbers(const std::vector<float>& values) {
  json out = json::array();
  for (const float v : values) out.push_back(short_number(v));
  return out;
}

json describe(const traced_sequence& sequence, const timeline& line) {
  json spans = json::array();
  for (const span& s : line.spans) {
    const refresh& r = *s.cause;
    spans.push_back({{"first", s.first},
                     {"end", s.end},
                     {"position", r.position},
                     {"reason", r.reason},
                     {"stage", r.stage},
                     {"complete", r.complete_chunks},
                     {"budget", r.budget},
                     {"recalled", r.recalled},
                     {"unreadable", r.unreadable},
                     {"staleness", r.staleness},
                     {"score_us", r.score_us},
                     {"recall_us", r.recall_us},
                     {"resident", runs(s.resident)},
                     {"scores", numbers(r.scores)},
                     {"mass", numbers(s.mass)},
                     {"measured", s.measured},
                     {"text", s.text}});
  }
  json texts = json::object();
  for (const auto& [chunk, text] : sequence.chunk_texts) texts[std::to_string(chunk)] = text;
  return {{"index", sequence.index},       {"name", sequence.name}, {"generation", sequence.generation},
          {"given_up", sequence.given_up}, {"chunks", line.chunks}, {"texts", std::move(texts)},
          {"spans", std::move(spans)}};
}

}  // namespace

std::string page(const trace& from, const std::vector<timeline>& lines) {
  json sequences = json::array();
  for (std::size_t i = 0; i < lines.size(); ++i) sequences.push_back(describe(from.sequences[i], lines[i]));
  const json data = {{"title", from.title},
                     {"tokens_per_chunk", from.tokens_per_chunk},
                     {"cut", from.cut},
                     {"sequences", std::move(sequences)}};
  std::string text = data.dump(-1, ' ', false, json::error_handler_t::replace);
  // Inside a script element only this could end it.
  for (std::size_t at = 0; (at = text.find('<', at)) != std::string::npos;) text.replace(at, 1, "\\u003c");
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0}</title>\n<style>{1}</style></head>\n<body>\n<h1>{0}</h1>\n"
      "<noscript>This page draws with JavaScript, all of which is in it.</noscript>\n"
      "<div id=\"view\"></div>\n<script id=\"data\" type=\"application/json\">{2}</script>\n"
      "<script>{3}</script>\n</body></html>\n",
      xml_text(from.title.empty() ? "What stayed resident" : from.title), page_css, text, page_js);
}

}  // namespace trace_view
