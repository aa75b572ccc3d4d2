// SPDX-License-Identifier: MIT
#include "picture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace trace_view {
namespace {

constexpr double left = 54, top = 34, width = 880, height = 360;

/// From a resident chunk that is not looked at to one that has all of the attention, which is spread over orders of
/// magnitude: shades go by its logarithm, from 0.1 % on.
std::string shade(double mass, bool measured) {
  if (!measured) return "#4f7cac";
  const double part = mass <= 0 ? 0 : std::clamp(1 + std::log10(mass) / 3, 0.0, 1.0);
  const auto mix = [&](int from, int to) { return int(std::lround(from + (to - from) * part)); };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(0xd6, 0x08), mix(0xe4, 0x30), mix(0xf2, 0x6b));
}

/// What fits above the drawing.
std::string caption(const trace& from, const traced_sequence& sequence) {
  std::string out = from.title;
  if (!sequence.name.empty()) out += (out.empty() ? "" : ": ") + sequence.name;
  constexpr std::size_t most = 76;
  if (out.size() <= most) return out;
  std::size_t end = most;  // not in the middle of a character
  while (end > 0 && (static_cast<unsigned char>(out[end]) & 0xc0) == 0x80) --end;
  return out.substr(0, end) + " ...";
}

}  // namespace

std::string xml_text(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t')
      out += c;
  }
  return out;
}

std::string picture(const trace& from, const traced_sequence& sequence, const timeline& line) {
  std::string out;
  const auto add = [&]<class... T>(fmt::format_string<T...> format, T&&... values) {
    fmt::format_to(std::back_inserter(out), format, std::forward<T>(values)...);
  };
  const auto columns = static_cast<double>(std::max<std::size_t>(line.spans.size(), 1));
  const auto chunks = static_cast<double>(std::max<std::int64_t>(line.chunks, 1));
  const double w = width / columns, h = height / chunks;
  const bool measured = line.measured();

  add("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {:g} {:g}' font-family='system-ui, sans-serif' "
      "font-size='11' fill='#333'>\n",
      left + width + 16, top + height + 44);
  add("<rect width='100%' height='100%' fill='#fff'/>\n");
  add("<text x='{:g}' y='16' font-size='13' font-weight='600'>{}</text>\n", left,
      xml_text(caption(from, sequence)));
  add("<text x='{:g}' y='16' text-anchor='end'>{} resident sets, {:.1f} % of {} chunks resident</text>\n",
      left + width, line.spans.size(), 100 * line.mean_resident(), line.chunks);
  add("<rect x='{:g}' y='{:g}' width='{:g}' height='{:g}' fill='#f6f6f4' stroke='#bbb'/>\n", left, top, width,
      height);
  for (std::size_t i = 0; i < line.spans.size(); ++i) {
    const span& s = line.spans[i];
    const double x = left + w * static_cast<double>(i), gap = std::min(1.0, w / 6);
    const auto measured_chunks = static_cast<std::int64_t>(s.mass.size());
    const auto colour_of = [&](std::int64_t chunk) {
      return shade(chunk < measured_chunks ? double{s.mass[std::size_t(chunk)]} : 0.0, s.measured > 0);
    };
    for (const chunk_run& run : s.resident)
      for (std::int64_t c = run.first; c < run.end;) {
        // What looks alike is drawn as one.
        const std::string colour = colour_of(c);
        std::int64_t end = c + 1;
        if (c >= measured_chunks || s.measured == 0) end = run.end;
        while (end < run.end && end < measured_chunks && colour_of(end) == colour) ++end;
        add("<rect x='{:.2f}' y='{:.2f}' width='{:.2f}' height='{:.2f}' fill='{}'/>\n", x,
            top + h * static_cast<double>(c), w - gap, std::max(h * static_cast<double>(end - c), 0.8),
            colour);
        c = end;
      }
  }
  for (int i = 0; i <= 4; ++i) {
    const auto chunk = static_cast<std::int64_t>(std::llround(chunks * i / 4));
    add("<text x='{:g}' y='{:.1f}' text-anchor='end'>{}</text>\n", left - 5, top + height * i / 4 + 4,
        chunk * from.tokens_per_chunk);
  }
  add("<text transform='translate(12 {:g}) rotate(-90)' text-anchor='middle'>token of the context</text>\n",
      top + height / 2);
  const std::size_t every = (line.spans.size() + 11) / 12;
  for (std::size_t i = 0; i < line.spans.size(); i += std::max<std::size_t>(every, 1))
    add("<text x='{:.1f}' y='{:g}'>{}</text>\n", left + w * static_cast<double>(i), top + height + 15,
        line.spans[i].first);
  add("<text x='{:g}' y='{:g}'>token from which the set served</text>\n", left, top + height + 34);
  if (measured) {
    add("<text x='{:g}' y='{:g}' text-anchor='end'>attention paid: 0.1 %</text>\n", left + width - 114,
        top + height + 34);
    for (int i = 0; i < 6; ++i)
      add("<rect x='{:g}' y='{:g}' width='12' height='10' fill='{}'/>\n", left + width - 110 + 12 * i,
          top + height + 25, shade(std::pow(10, -3 + 3 * i / 5.0), true));
    add("<text x='{:g}' y='{:g}'>100 %</text>\n", left + width - 34, top + height + 34);
  }
  out += "</svg>\n";
  return out;
}

}  // namespace trace_view
