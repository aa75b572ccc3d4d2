// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <flashmemory/parallel.hpp>
#include <thread>
#include <vector>

namespace tinylm {

/// The engine's threads. Between the short jobs of a decode step workers spin, because waking a sleeping
/// thread takes longer than most of these jobs; after a pause they sleep. flashmemory works on the same
/// threads through hook(), so nothing competes for the cores.
class thread_pool {
 public:
  /// \param threads  the caller's included; 0 = as many as the machine has
  /// \throws std::runtime_error if the system does not give so many
  explicit thread_pool(std::int32_t threads);
  ~thread_pool();
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(workers_.size()) + 1; }

  /// Calls task(context, i) once for every i in [0, count), lowest first, and returns when all have returned.
  /// One job at a time, from one thread.
  void run(std::int32_t count, void (*task)(void*, std::int32_t), void* context) noexcept;

  template <class F>
  void for_each(std::int64_t count, const F& f) noexcept {
    run(
        static_cast<std::int32_t>(count),
        [](void* context, std::int32_t i) { (*static_cast<const F*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

  /// For flashmemory; valid as long as the pool.
  flashmemory::thread_hook hook() noexcept;

  /// Number of the calling thread among the pool's, 0 for any other thread.
  static std::int32_t current() noexcept;

 private:
  void stop() noexcept;
  bool work_once() noexcept;
  void work(std::int32_t number) noexcept;

  /// Number of the job and how many of its tasks are unclaimed, in one word, so that a task can only be
  /// claimed from the job it belongs to. Zero left means no work.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::int32_t> unfinished_{0};
  std::atomic<bool> stop_{false};
  std::int32_t count_ = 0;
  void (*task_)(void*, std::int32_t) = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace tinylm
