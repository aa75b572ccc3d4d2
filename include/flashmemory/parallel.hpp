// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/config.hpp>

namespace flashmemory {
inline namespace v0 {

/// How the CPU backend uses an engine's threads: it splits a call into independent tasks and hands them to
/// `run`. Results never depend on how many threads there are or which task ran where.
struct thread_hook {
  void* context = nullptr;  ///< passed to `run` unchanged

  /// Calls task(task_context, i) exactly once for every i in [0, count), on any threads, and returns when all
  /// calls have returned. Null means serially on the calling thread.
  void (*run)(void* context, std::int32_t count, void (*task)(void* task_context, std::int32_t index),
              void* task_context) = nullptr;

  /// How many tasks run at the same time; only decides how finely work is cut where that cannot change
  /// results.
  std::int32_t concurrency = 1;
};

/// OpenMP's threads when the library was built with FLASHMEMORY_OPENMP, else serial. In a child of fork(), where OpenMP
/// has lost its threads, everything runs on the calling thread, with the same results; so it does with hooks from before
/// the fork.
FLASHMEMORY_API thread_hook default_threads() noexcept;

/// Everything on the calling thread.
FLASHMEMORY_API thread_hook serial_threads() noexcept;

}  // namespace v0
}  // namespace flashmemory
