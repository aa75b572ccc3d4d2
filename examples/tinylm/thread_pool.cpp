// SPDX-License-Identifier: MIT
#include "thread_pool.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>

namespace tinylm {
namespace {

constexpr std::uint64_t left_mask = 0xffffffffu;
constexpr int spins_before_sleep = 20000;
constexpr int spins_before_yield = 2000;
thread_local std::int32_t current_thread = 0;

void pause_briefly() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

thread_pool::thread_pool(std::int32_t threads) {
  if (threads <= 0) threads = static_cast<std::int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  try {
    for (std::int32_t i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error& e) {
    const std::int32_t started = size();
    stop();
    throw std::runtime_error("--threads " + std::to_string(threads) + ": only " + std::to_string(started) +
                             " can be had: " + e.code().message());
  }
}

thread_pool::~thread_pool() { stop(); }

void thread_pool::stop() noexcept {
  stop_.store(true, std::memory_order_relaxed);
  ticket_.fetch_add(left_mask + 1, std::memory_order_release);
  ticket_.notify_all();
  for (auto& worker : workers_) worker.join();
}

bool thread_pool::work_once() noexcept {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((ticket & left_mask) != 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    // The job's fields stay as they are until the task that was just claimed has finished.
    task_(context_, count_ - static_cast<std::int32_t>(ticket & left_mask));
    unfinished_.fetch_sub(1, std::memory_order_release);
    return true;
  }
  return false;
}

void thread_pool::work(std::int32_t number) noexcept {
  current_thread = number;
  int idle = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    if (work_once()) {
      idle = 0;
    } else if (++idle < spins_before_sleep) {
      pause_briefly();
    } else {
      const std::uint64_t seen = ticket_.load(std::memory_order_acquire);
      if ((seen & left_mask) == 0 && !stop_.load(std::memory_order_relaxed)) ticket_.wait(seen);
      idle = 0;
    }
  }
}

void thread_pool::run(std::int32_t count, void (*task)(void*, std::int32_t), void* context) noexcept {
  if (count <= 0) return;
  if (count == 1 || workers_.empty()) {
    for (std::int32_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  task_ = task;
  context_ = context;
  count_ = count;
  unfinished_.store(count, std::memory_order_relaxed);
  const std::uint64_t job = (ticket_.load(std::memory_order_relaxed) | left_mask) + 1;
  ticket_.store(job | static_cast<std::uint32_t>(count), std::memory_order_release);
  ticket_.notify_all();
  while (work_once()) {
  }
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    spins < spins_before_yield ? pause_briefly() : std::this_thread::yield();
  }
}

flashmemory::thread_hook thread_pool::hook() noexcept {
  flashmemory::thread_hook hook;
  hook.context = this;
  hook.run = [](void* context, std::int32_t count, void (*task)(void*, std::int32_t), void* task_context) {
    static_cast<thread_pool*>(context)->run(count, task, task_context);
  };
  hook.concurrency = size();
  return hook;
}

std::int32_t thread_pool::current() noexcept { return current_thread; }

}  // namespace tinylm
