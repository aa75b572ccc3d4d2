// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Shared with the thread that waits, which may outlive the call.
struct device_outcome {
  std::mutex mutex;
  std::condition_variable changed;
  bool over = false;
  cudaError_t code = cudaSuccess;
};

/// Waits until everything that is queued on the current device, on whatever streams, is over, at most until `deadline`;
/// then cudaErrorNotReady. For set-up calls and destructors: it starts a thread, since the runtime has no such wait, and
/// leaves it behind at the deadline.
inline cudaError_t wait_for_device(std::chrono::milliseconds deadline) noexcept {
  int device = 0;
  if (const cudaError_t code = cudaGetDevice(&device); code != cudaSuccess) return code;
  try {
    const auto shared = std::make_shared<device_outcome>();
    std::thread([shared, device] {
      cudaError_t code = cudaSetDevice(device);
      if (code == cudaSuccess) code = cudaDeviceSynchronize();
      const std::lock_guard<std::mutex> lock(shared->mutex);
      shared->code = code;
      shared->over = true;
      shared->changed.notify_one();
    }).detach();
    std::unique_lock<std::mutex> lock(shared->mutex);
    if (!shared->changed.wait_for(lock, deadline, [&] { return shared->over; })) return cudaErrorNotReady;
    return shared->code;
  } catch (...) {
    // No thread to be had. Whoever gives memory back must not do so on a guess.
    return cudaErrorNotReady;
  }
}

/// How long destructors wait before they rather lose memory than give away what is still in use.
inline constexpr std::chrono::milliseconds last_wait{10000};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
