// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>

namespace flashmemory {
inline namespace v0 {
namespace detail {

class stopwatch {
 public:
  double seconds() const noexcept {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
