// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <flashmemory/error.hpp>
#include <flashmemory/stream.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace replay {

inline void must(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}
inline void must(flashmemory::status code, const char* what) {
  if (code != flashmemory::status::ok)
    throw flashmemory::error(code, std::string(what) + ": " + flashmemory::to_string(code));
}
inline void must(flashmemory::status code, const flashmemory::fault& f) {
  if (code != flashmemory::status::ok) throw flashmemory::error(code, flashmemory::describe(f));
}

/// A block of device memory.
template <class T>
class device_array {
 public:
  device_array() = default;
  explicit device_array(std::size_t count) : count_(count) {
    void* block = nullptr;
    must(cudaMalloc(&block, std::max<std::size_t>(count * sizeof(T), 16)));
    data_ = static_cast<T*>(block);
  }
  explicit device_array(const std::vector<T>& host) : device_array(host.size()) {
    must(cudaMemcpy(static_cast<void*>(data_), host.data(), bytes(), cudaMemcpyHostToDevice));
    must(cudaStreamSynchronize(nullptr));  // it may only have begun, and other streams do not wait for it
  }
  device_array(device_array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  device_array& operator=(device_array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~device_array() { cudaFree(static_cast<void*>(data_)); }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return count_; }
  std::size_t bytes() const noexcept { return count_ * sizeof(T); }
  std::vector<T> get() const {
    std::vector<T> host(count_);
    must(cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

class device_stream {
 public:
  device_stream() { must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  device_stream(const device_stream&) = delete;
  device_stream& operator=(const device_stream&) = delete;
  ~device_stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const noexcept { return stream_; }
  flashmemory::stream_ref ref() const noexcept { return flashmemory::stream_ref(stream_); }
  void wait() const { must(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

class device_event {
 public:
  device_event() { must(cudaEventCreate(&event_)); }
  device_event(device_event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  device_event& operator=(device_event&&) = delete;
  ~device_event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  void record(const device_stream& stream) { must(cudaEventRecord(event_, stream.get())); }
  void wait() const { must(cudaEventSynchronize(event_)); }
  /// Microseconds of device time from `earlier` to this one.
  double us_since(const device_event& earlier) const {
    float ms = 0;
    must(cudaEventElapsedTime(&ms, earlier.event_, event_));
    return 1e3 * double(ms);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace replay
