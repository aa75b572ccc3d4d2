// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>

#include "src/core/checked.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Stands for a call from its beginning to its end. In checked builds it finds out whether another thread is inside the
/// store where the contract forbids it; else it costs nothing.
class call_scope {
 public:
#if FLASHMEMORY_CHECKED
  call_scope(std::atomic<std::int32_t>& inside, bool changes) noexcept : inside_(inside), changes_(changes) {
    std::int32_t now = 0;
    if (changes_) {
      entered_ = inside_.compare_exchange_strong(now, -1);
      return;
    }
    for (now = inside_.load(); now >= 0 && !entered_;) entered_ = inside_.compare_exchange_weak(now, now + 1);
  }
  ~call_scope() {
    if (entered_) changes_ ? inside_.store(0) : static_cast<void>(inside_.fetch_sub(1));
  }
  call_scope(const call_scope&) = delete;
  call_scope& operator=(const call_scope&) = delete;
  bool entered() const noexcept { return entered_; }

 private:
  std::atomic<std::int32_t>& inside_;
  bool changes_;
  bool entered_ = false;
#else
  call_scope(std::atomic<std::int32_t>&, bool) noexcept {}
  constexpr bool entered() const noexcept { return true; }
#endif
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
