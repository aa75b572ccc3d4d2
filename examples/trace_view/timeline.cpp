// SPDX-License-Identifier: MIT
#include "timeline.hpp"

#include <algorithm>
#include <cmath>

namespace trace_view {

std::int64_t span::resident_chunks() const noexcept {
  std::int64_t count = 0;
  for (const chunk_run& run : resident) count += run.end - run.first;
  return count;
}

bool timeline::measured() const noexcept {
  return std::any_of(spans.begin(), spans.end(), [](const span& s) { return s.measured > 0; });
}

double timeline::mean_resident() const noexcept {
  double share = 0, tokens = 0;
  for (const span& s : spans) {
    const auto length = static_cast<double>(std::max<std::int64_t>(s.end - s.first, 1));
    const std::int64_t all = s.resident.empty() ? 1 : s.resident.back().end;
    share += length * static_cast<double>(s.resident_chunks()) / static_cast<double>(all);
    tokens += length;
  }
  return tokens > 0 ? share / tokens : 0;
}

namespace {

std::vector<chunk_run> runs_of(const std::vector<std::int64_t>& ids) {
  std::vector<chunk_run> out;
  for (const std::int64_t id : ids) {
    if (out.empty() || out.back().end != id)
      out.push_back({id, id + 1});
    else
      ++out.back().end;
  }
  return out;
}

}  // namespace

timeline make_timeline(const traced_sequence& sequence, std::int64_t tokens_per_chunk) {
  timeline out;
  std::int64_t newest = 0;
  for (const auto& t : sequence.token_texts) newest = std::max(newest, t.first + 1);
  for (const auto& a : sequence.attention) newest = std::max(newest, a.position + 1);
  for (const refresh& r : sequence.refreshes) {
    if (!r.in_force) continue;
    span s;
    s.cause = &r;
    s.first = r.tokens;
    s.resident = runs_of(r.resident);
    if (!out.spans.empty()) out.spans.back().end = std::max(out.spans.back().first, r.tokens);
    out.spans.push_back(std::move(s));
  }
  if (out.spans.empty()) return out;
  out.spans.back().end = std::max(out.spans.back().first + 1, newest);

  for (span& s : out.spans) {
    const std::int64_t end = std::min((s.end + tokens_per_chunk - 1) / tokens_per_chunk, most_chunks);
    const std::int64_t next = s.resident.empty() ? s.cause->complete_chunks : s.resident.back().end;
    if (next < end && s.resident.empty())
      s.resident.push_back({next, end});
    else if (next < end)
      s.resident.back().end = end;
    if (!s.resident.empty()) out.chunks = std::max(out.chunks, s.resident.back().end);
    out.chunks = std::max({out.chunks, s.cause->complete_chunks, std::int64_t(s.cause->scores.size())});
  }
  // After a rollback positions come again: they belong to the newest span that has them.
  const auto span_of = [&](std::int64_t position) -> span* {
    for (auto s = out.spans.rbegin(); s != out.spans.rend(); ++s)
      if (s->first <= position && position < s->end) return &*s;
    return nullptr;
  };
  for (const auto& a : sequence.attention) {
    span* const s = span_of(a.position);
    if (!s) continue;
    if (s->mass.size() < a.mass.size()) s->mass.resize(a.mass.size());
    for (std::size_t c = 0; c < a.mass.size(); ++c)
      if (std::isfinite(a.mass[c])) s->mass[c] += a.mass[c];
    ++s->measured;
    out.chunks = std::max(out.chunks, std::int64_t(a.mass.size()));
  }
  for (span& s : out.spans)
    for (float& m : s.mass) m /= static_cast<float>(s.measured);
  for (const auto& [position, text] : sequence.token_texts)
    if (span* const s = span_of(position)) s->text += text;
  return out;
}

}  // namespace trace_view
