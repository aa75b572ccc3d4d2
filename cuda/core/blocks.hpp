// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <flashmemory/error.hpp>
#include <flashmemory/memory.hpp>
#include <utility>

#include "cuda/core/device_guard.hpp"
#include "cuda/core/device_wait.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// For set-up calls.
inline void ask(cudaError_t code, const char* purpose) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it again
  throw error(status::cuda_error, fmt::format("{}: {}", purpose, cudaGetErrorString(code)));
}

enum class block_kind { device, pinned };

/// Device or pinned memory of an engine's resource, or CUDA's own. 256-byte aligned.
class memory_block {
 public:
  memory_block() = default;
  /// \throws admission_error naming `purpose` if there is none
  memory_block(block_kind kind, const memory_resource& memory, std::size_t bytes, const char* purpose)
      : kind_(kind), memory_(memory), bytes_(bytes > 0 ? bytes : alignment) {
    if (memory_.allocate != nullptr) {
      data_ = memory_.allocate(memory_.context, bytes_, alignment);
    } else {
      const cudaError_t code =
          kind == block_kind::device
              ? cudaMalloc(&data_, bytes_)
              : cudaHostAlloc(&data_, bytes_, cudaHostAllocPortable | cudaHostAllocMapped);
      if (code != cudaSuccess) {
        cudaGetLastError();
        data_ = nullptr;
      }
    }
    if (data_ == nullptr)
      throw admission_error(status::budget_exceeded,
                            fmt::format("{}: no {} bytes of {} memory", purpose, bytes_,
                                        kind == block_kind::device ? "device" : "pinned"));
  }
  memory_block(memory_block&& other) noexcept { *this = std::move(other); }
  memory_block& operator=(memory_block&& other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~memory_block() {
    if (data_ == nullptr) return;
    if (memory_.allocate != nullptr) {
      // cudaFree() waits for what may still use the block, an engine's resource does not. Better lost than given away.
      if (memory_.deallocate != nullptr && unused())
        memory_.deallocate(memory_.context, data_, bytes_, alignment);
    } else if (kind_ == block_kind::device) {
      cudaFree(data_);
    } else {
      cudaFreeHost(data_);
    }
  }

  template <class T>
  T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  bool unused() const noexcept {
    cudaPointerAttributes where{};
    int device = -1;
    if (cudaPointerGetAttributes(&where, data_) == cudaSuccess && where.type != cudaMemoryTypeUnregistered)
      device = where.device;
    if (device < 0 && cudaGetDevice(&device) != cudaSuccess) device = 0;
    const device_guard guard(device);
    const bool over = wait_for_device(last_wait) != cudaErrorNotReady;
    cudaGetLastError();
    return over;
  }

  static constexpr std::size_t alignment = 256;
  block_kind kind_ = block_kind::device;
  memory_resource memory_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// An event that is recorded and asked, never waited for without end.
class event {
 public:
  event() { ask(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "event"); }
  event(event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  event& operator=(event&&) = delete;
  ~event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  cudaEvent_t get() const noexcept { return event_; }
  cudaError_t record(cudaStream_t stream) const noexcept { return cudaEventRecord(event_, stream); }
  /// cudaErrorNotReady is an answer; one that was never recorded is over.
  cudaError_t query() const noexcept {
    const cudaError_t code = cudaEventQuery(event_);
    if (code == cudaErrorNotReady) cudaGetLastError();  // or the check of the next launch would find it
    return code;
  }
  /// Asks until the answer is another or the time is over.
  cudaError_t wait(std::chrono::milliseconds deadline) const noexcept {
    const auto end = std::chrono::steady_clock::now() + deadline;
    cudaError_t code = query();
    while (code == cudaErrorNotReady && std::chrono::steady_clock::now() < end) code = query();
    return code;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
