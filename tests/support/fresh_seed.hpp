// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>

#include "tests/catch.hpp"

namespace flashmemory_test {

/// A seed that differs from run to run, to be shown on failure. FLASHMEMORY_TEST_SEED=n in the environment takes the
/// place of every one, so that a failure can be repeated.
inline std::uint32_t fresh_seed() {
  if (const char* fixed = std::getenv("FLASHMEMORY_TEST_SEED"))
    return static_cast<std::uint32_t>(std::stoul(fixed));
  return std::random_device()();
}

/// One for a test whose many small problems would each capture it: it is printed, failure or not.
inline std::uint32_t printed_seed(const char* test) {
  const std::uint32_t seed = fresh_seed();
  std::cout << test << ": seed " << seed << std::endl;
  return seed;
}

/// `count` of them for GENERATE: the test case runs once with each.
inline auto fresh_seeds(int count) {
  return Catch::Generators::map([](int) { return fresh_seed(); }, Catch::Generators::range(0, count));
}

}  // namespace flashmemory_test
