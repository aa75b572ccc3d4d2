// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

namespace tinylm {

/// A number from `least` to `most`. CLI::Range lets NaN through, which is neither below nor above anything.
template <class T>
CLI::Validator within(T least, T most) {
  return CLI::Validator(
      [=](const std::string& text) -> std::string {
        T value{};
        if (!CLI::detail::lexical_cast(text, value)) return fmt::format("'{}' is no number", text);
        if (value >= least && value <= most) return {};
        return fmt::format("{} is not from {} to {}", text, least, most);
      },
      fmt::format("{} to {}", least, most));
}

/// A share, as a fraction; who writes 13.5 for 13.5 % is told.
inline CLI::Validator fraction(double least = 0, double most = 1) {
  return CLI::Validator(
      [=](const std::string& text) -> std::string {
        double value = 0;
        if (!CLI::detail::lexical_cast(text, value)) return fmt::format("'{}' is no number", text);
        if (value >= least && value <= most) return {};
        if (value > 1 && value <= 100)
          return fmt::format("{} is not from {} to {}; {} % is {}", text, least, most, text, value / 100);
        return fmt::format("{} is not from {} to {}", text, least, most);
      },
      fmt::format("fraction, {} to {}", least, most));
}

/// Threads, 0 = as many as the machine has.
inline CLI::Validator thread_count() { return within(0, 1024); }

/// What counts chunks, tokens or documents: far above what can be held, far below where sums of them overflow.
inline CLI::Validator count(std::int64_t least = 0) { return within(least, std::int64_t{1} << 30); }

}  // namespace tinylm
