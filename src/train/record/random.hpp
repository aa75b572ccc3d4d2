// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// splitmix64's finaliser: a bijection that scatters any change of its input.
inline std::uint64_t scatter(std::uint64_t x) noexcept {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Random numbers that depend on a seed and a stream number alone, so that any step of training can be
/// repeated without the ones before it. Same on every platform.
class random_stream {
 public:
  random_stream(std::uint64_t seed, std::uint64_t stream) noexcept
      : state_(scatter(scatter(seed) ^ stream)) {}

  std::uint64_t next() noexcept { return scatter(state_++); }
  /// In [0, 1).
  double uniform() noexcept { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// In [0, count); count > 0.
  std::int64_t below(std::int64_t count) noexcept {
    return static_cast<std::int64_t>(uniform() * static_cast<double>(count));
  }
  /// Standard normal, Box-Muller.
  double normal() noexcept {
    const double u = 1 - uniform();
    return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * uniform());
  }

 private:
  std::uint64_t state_;
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
