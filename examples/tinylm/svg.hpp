// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tinylm {

/// `text` with the characters that mean something to HTML escaped.
std::string html_text(std::string_view text);

/// Maps values to pixels, in proportion or by logarithm.
class axis {
 public:
  axis(double low, double high, double first, double last, bool logarithmic) noexcept
      : low_(low), high_(high), first_(first), last_(last), logarithmic_(logarithmic) {}

  double at(double value) const noexcept;

 private:
  double low_, high_, first_, last_;
  bool logarithmic_;
};

/// A drawing of fixed extent in pixels that scales with the page. Colours are classes of the page's style sheet.
class svg {
 public:
  svg(double width, double height, std::string_view label);

  void line(double x0, double y0, double x1, double y1, std::string_view style);
  void rect(double x, double y, double width, double height, std::string_view style,
            std::string_view title = {});
  void text(double x, double y, std::string_view content, std::string_view style);
  void polyline(const std::vector<double>& x, const std::vector<double>& y, std::string_view style);
  /// A mark of one of six shapes, `shape` counted round.
  void mark(double x, double y, std::size_t shape, std::string_view style, std::string_view title);

  /// The element, closed.
  std::string str() const { return body_ + "</svg>\n"; }

 private:
  std::string body_;
};

}  // namespace tinylm
