// SPDX-License-Identifier: MIT
#include "svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace tinylm {

std::string html_text(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

double axis::at(double value) const noexcept {
  const double clamped = std::clamp(value, low_, high_);
  const double part =
      logarithmic_ ? std::log(clamped / low_) / std::log(high_ / low_) : (clamped - low_) / (high_ - low_);
  return first_ + part * (last_ - first_);
}

svg::svg(double width, double height, std::string_view label)
    : body_(
          fmt::format("<svg viewBox='0 0 {:g} {:g}' style='max-width:{:g}px' role='img' aria-label=\"{}\">\n",
                      width, height, width, html_text(label))) {}

void svg::line(double x0, double y0, double x1, double y1, std::string_view style) {
  fmt::format_to(std::back_inserter(body_),
                 "<line class='{}' x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}'/>\n", style, x0, y0, x1,
                 y1);
}

void svg::rect(double x, double y, double width, double height, std::string_view style,
               std::string_view title) {
  fmt::format_to(std::back_inserter(body_),
                 "<rect class='{}' x='{:.2f}' y='{:.2f}' width='{:.2f}' height='{:.2f}'", style, x, y, width,
                 height);
  if (title.empty())
    body_ += "/>\n";
  else
    fmt::format_to(std::back_inserter(body_), "><title>{}</title></rect>\n", html_text(title));
}

void svg::text(double x, double y, std::string_view content, std::string_view style) {
  fmt::format_to(std::back_inserter(body_), "<text class='{}' x='{:.1f}' y='{:.1f}'>{}</text>\n", style, x, y,
                 html_text(content));
}

void svg::polyline(const std::vector<double>& x, const std::vector<double>& y, std::string_view style) {
  fmt::format_to(std::back_inserter(body_), "<polyline class='{}' points='", style);
  for (std::size_t i = 0; i < x.size(); ++i)
    fmt::format_to(std::back_inserter(body_), "{:.1f},{:.1f} ", x[i], y[i]);
  body_ += "'/>\n";
}

void svg::mark(double x, double y, std::size_t shape, std::string_view style, std::string_view title) {
  const double r = 5;
  std::string element;
  switch (shape % 6) {
    case 0:
      element = fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='{:g}'", x, y, r);
      break;
    case 1:
      element =
          fmt::format("<path d='M{:.1f} {:.1f}l{r} {r}l-{r} {r}l-{r} -{r}z'", x, y - r, fmt::arg("r", r));
      break;
    case 2:
      element = fmt::format("<rect x='{:.1f}' y='{:.1f}' width='{:g}' height='{:g}'", x - r + 1, y - r + 1,
                            2 * r - 2, 2 * r - 2);
      break;
    case 3:
      element = fmt::format("<path d='M{:.1f} {:.1f}l{r} {h}h-{h}z'", x, y - r, fmt::arg("r", r),
                            fmt::arg("h", 2 * r));
      break;
    case 4:
      element = fmt::format("<path d='M{:.1f} {:.1f}h{h}l-{r} {h}z'", x - r, y - r, fmt::arg("r", r),
                            fmt::arg("h", 2 * r));
      break;
    default:
      element = fmt::format("<path d='M{:.1f} {:.1f}h4v3h3v4h-3v3h-4v-3h-3v-4h3z'", x - 2, y - r);
  }
  fmt::format_to(std::back_inserter(body_), "{} class='mark {}'><title>{}</title></{}>\n", element, style,
                 html_text(title), element.substr(1, element.find(' ') - 1));
}

}  // namespace tinylm
