// SPDX-License-Identifier: MIT
#include "scoring.hpp"

#include <algorithm>

namespace tinylm {

std::vector<std::string> numbers_in(std::string_view text) {
  constexpr std::size_t least_digits = 5;
  text = text.substr(0, text.find('\n'));
  std::vector<std::string> numbers;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
    if (end - at >= least_digits) numbers.emplace_back(text.substr(at, end - at));
    at = std::max(end, at + 1);
  }
  return numbers;
}

score score_answer(std::string_view text, const std::vector<std::string>& answers) {
  const auto numbers = numbers_in(text);
  score s;
  s.expected = static_cast<int>(answers.size());
  for (const auto& answer : answers) {
    s.found += std::find(numbers.begin(), numbers.end(), answer) != numbers.end();
  }
  return s;
}

}  // namespace tinylm
