// SPDX-License-Identifier: MIT
#include "src/core/parallel.hpp"

#include <flashmemory/parallel.hpp>

#if defined(_OPENMP)
#include <omp.h>
#include <pthread.h>

#include <atomic>
#endif

namespace flashmemory {
inline namespace v0 {

#if defined(_OPENMP)
namespace {

/// OpenMP's threads do not come along to a child of fork(), and its runtime would wait for them there for ever.
std::atomic<bool> forked{false};

void watch_for_fork() noexcept {
  static const int watching = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
  static_cast<void>(watching);
}

void run_openmp(void*, std::int32_t count, void (*task)(void*, std::int32_t), void* task_context) {
  if (forked.load(std::memory_order_relaxed)) {
    for (std::int32_t i = 0; i < count; ++i) task(task_context, i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int32_t i = 0; i < count; ++i) task(task_context, i);
}

}  // namespace

thread_hook default_threads() noexcept {
  watch_for_fork();
  thread_hook hook;
  hook.run = run_openmp;
  hook.concurrency = forked.load(std::memory_order_relaxed) ? 1 : omp_get_max_threads();
  return hook;
}
#else
thread_hook default_threads() noexcept { return serial_threads(); }
#endif

thread_hook serial_threads() noexcept { return {}; }

namespace detail {
void run_tasks(const thread_hook& threads, std::int32_t count, void (*task)(void*, std::int32_t),
               void* context) {
  if (count <= 0) return;
  if (count == 1 || threads.run == nullptr) {
    for (std::int32_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  threads.run(threads.context, count, task, context);
}
}  // namespace detail

}  // namespace v0
}  // namespace flashmemory
