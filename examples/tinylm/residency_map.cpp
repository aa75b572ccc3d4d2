// SPDX-License-Identifier: MIT
#include "residency_map.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "svg.hpp"

namespace tinylm {
namespace {

bool is_resident(const residency_span& span, std::int64_t chunk) {
  return std::binary_search(span.chunks.begin(), span.chunks.end(), chunk);
}

bool covers(const std::vector<residency_span>& spans, std::int64_t chunk, std::int64_t first,
            std::int64_t end) {
  for (const auto& span : spans)
    if (span.first < end && first < span.end && !is_resident(span, chunk)) return false;
  return true;
}

}  // namespace

std::vector<residency_span> residency_spans(const run_record& run, std::int64_t prompt_tokens,
                                            std::int64_t tokens_per_chunk) {
  std::vector<residency_span> spans;
  const auto generated = static_cast<std::int64_t>(run.ids.size());
  for (std::size_t i = 0; i < run.refreshes.size(); ++i) {
    const refresh& now = run.refreshes[i];
    residency_span span;
    span.first = std::max<std::int64_t>(now.tokens - prompt_tokens, 0);
    span.end = i + 1 < run.refreshes.size()
                   ? std::clamp<std::int64_t>(run.refreshes[i + 1].tokens - prompt_tokens, 0, generated)
                   : generated;
    if (span.first >= span.end) continue;
    span.chunks.assign(now.resident.begin(), now.resident.end());
    // What the run completes after a refresh stays until the next one.
    const std::int64_t last = (prompt_tokens + span.end - 1) / tokens_per_chunk;
    for (std::int64_t chunk = now.complete_chunks; chunk <= last; ++chunk) span.chunks.push_back(chunk);
    spans.push_back(std::move(span));
  }
  return spans;
}

std::int64_t covered_answers(const std::vector<residency_span>& spans, const std::vector<evidence>& need,
                             std::int64_t tokens_per_chunk) {
  std::int64_t covered = 0;
  for (const auto& e : need) {
    bool all = true;
    for (std::int64_t chunk = e.prompt_begin / tokens_per_chunk;
         chunk <= (e.prompt_end - 1) / tokens_per_chunk; ++chunk)
      all = all && covers(spans, chunk, e.answer_begin, e.answer_end);
    covered += all;
  }
  return covered;
}

std::string residency_map(const eval_result& result, std::int64_t tokens_per_chunk) {
  const std::int64_t prompt = result.task->prompt_tokens;
  const auto generated = static_cast<std::int64_t>(result.run.ids.size());
  const auto spans = residency_spans(result.run, prompt, tokens_per_chunk);
  if (spans.empty()) return {};
  const std::int64_t chunks = (prompt + generated + tokens_per_chunk - 1) / tokens_per_chunk;
  constexpr double left = 34, right = 890, top = 6;
  const double column = (right - left) / static_cast<double>(chunks);
  const double row = std::clamp(160.0 / static_cast<double>(generated), 1.0, 6.0);
  const double height = row * static_cast<double>(generated);
  const auto x = [&](std::int64_t chunk) { return left + column * static_cast<double>(chunk); };
  const auto y = [&](std::int64_t token) { return top + row * static_cast<double>(token); };

  svg map(900, top + height + 22, fmt::format("Resident chunks, {}", result.cell->label()));
  map.rect(left, top, right - left, height, "frame");
  for (const auto& span : spans) {
    for (std::size_t i = 0; i < span.chunks.size();) {
      std::size_t end = i + 1;
      while (end < span.chunks.size() && span.chunks[end] == span.chunks[end - 1] + 1) ++end;
      map.rect(x(span.chunks[i]), y(span.first), column * static_cast<double>(end - i),
               row * static_cast<double>(span.end - span.first), "resident");
      i = end;
    }
    map.line(left, y(span.first), right, y(span.first), "refresh");
    map.text(left - 4, y(span.first) + 9, fmt::format("{}", span.first), "end");
  }
  for (const auto& e : result.task->need) {
    const std::int64_t end = std::min(e.answer_end, generated);
    if (e.answer_begin >= end) continue;
    for (std::int64_t chunk = e.prompt_begin / tokens_per_chunk;
         chunk <= (e.prompt_end - 1) / tokens_per_chunk; ++chunk) {
      const bool hit = covers(spans, chunk, e.answer_begin, end);
      map.rect(x(chunk) - 1.5, y(e.answer_begin), std::max(column, 1.0) + 3,
               row * static_cast<double>(end - e.answer_begin), hit ? "hit" : "miss",
               fmt::format("chunk {}, tokens {} to {}: {}", chunk, e.answer_begin, end - 1,
                           hit ? "resident" : "not resident"));
    }
  }
  map.text(left, top + height + 14, "chunk 0", "");
  map.text(right, top + height + 14, fmt::format("{}", chunks - 1), "end");
  return map.str();
}

}  // namespace tinylm
