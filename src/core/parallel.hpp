// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/parallel.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

FLASHMEMORY_API void run_tasks(const thread_hook& threads, std::int32_t count,
                               void (*task)(void*, std::int32_t), void* context);

/// Calls f(i) for every i in [0, count) through the hook; no allocation, `f` is borrowed for the call.
template <class F>
void parallel_for(const thread_hook& threads, std::int32_t count, const F& f) {
  run_tasks(
      threads, count, [](void* context, std::int32_t i) { (*static_cast<const F*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
