// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <string>

namespace indexer_program {

/// A number from `least` to `most`. CLI::Range lets NaN through, which is neither below nor above anything.
template <class T>
CLI::Validator within(T least, T most) {
  const std::string what = most == std::numeric_limits<T>::max() ? fmt::format("{} or more", least)
                                                                 : fmt::format("{} to {}", least, most);
  return CLI::Validator(
      [=](const std::string& text) -> std::string {
        T value{};
        if (!CLI::detail::lexical_cast(text, value)) return fmt::format("'{}' is no number", text);
        if (value >= least && value <= most) return {};
        return fmt::format("{} is not {}", text, what);
      },
      what);
}

template <class T>
CLI::Validator at_least(T least) {
  return within(least, std::numeric_limits<T>::max());
}

/// Finite and 0 or more.
inline CLI::Validator weight() { return within(0.0, 1e30); }

/// Above 0 and finite.
inline CLI::Validator positive() { return within(std::numeric_limits<double>::min(), 1e30); }

/// A share above 0, as a fraction; who writes 90 for 90 % is told.
inline CLI::Validator fraction() {
  return CLI::Validator(
      [](const std::string& text) -> std::string {
        double value = 0;
        if (!CLI::detail::lexical_cast(text, value)) return fmt::format("'{}' is no number", text);
        if (value > 0 && value <= 1) return {};
        if (value > 1 && value <= 100)
          return fmt::format("{} is not above 0 and at most 1; {} % is {}", text, text, value / 100);
        return fmt::format("{} is not above 0 and at most 1", text);
      },
      "a fraction, above 0 and at most 1");
}

/// A whole number and nothing else. \throws CLI::ValidationError naming `option`
std::int32_t parse_integer(const std::string& option, const std::string& text);

}  // namespace indexer_program
