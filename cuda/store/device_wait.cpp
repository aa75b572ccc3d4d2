// SPDX-License-Identifier: MIT
#include "cuda/core/device_wait.hpp"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

/// Shared with the thread that waits, which may outlive the call.
struct outcome {
  std::mutex mutex;
  std::condition_variable changed;
  bool over = false;
  cudaError_t code = cudaSuccess;
};

}  // namespace

cudaError_t wait_for_device(std::chrono::milliseconds deadline) noexcept {
  int device = 0;
  if (const cudaError_t code = cudaGetDevice(&device); code != cudaSuccess) return code;
  try {
    const auto shared = std::make_shared<outcome>();
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

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
