// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <flashmemory/stream.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/catch.hpp"

/// At the top of every GPU test. ctest turns the sentence into "skipped".
#define REQUIRE_GPU()                 \
  if (!flashmemory_test::has_gpu()) { \
    WARN("skipped: no CUDA device");  \
    return;                           \
  }                                   \
  static_assert(true, "takes a semicolon")

namespace flashmemory_test {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// How often a test repeats something: `full` times, or `reduced` times if FLASHMEMORY_REDUCED_TESTS is set, for tools
/// under which everything takes fifty times as long (sanitize.sh).
inline int repeats(int full, int reduced) {
  return std::getenv("FLASHMEMORY_REDUCED_TESTS") != nullptr ? reduced : full;
}

inline void must(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}

/// cudaMemset() that is over when it returns. By itself it may only have begun then, as may a copy from pageable memory,
/// and streams that do not block do not wait for either.
inline void fill(void* to, int byte, std::size_t bytes) {
  must(cudaMemset(to, byte, bytes));
  must(cudaStreamSynchronize(nullptr));
}

/// Device memory that starts out as NaNs of every type, so that reading what was never written shows.
template <class T>
class device_array {
 public:
  device_array() = default;
  explicit device_array(std::size_t count) : count_(count) {
    void* block = nullptr;
    must(cudaMalloc(&block, std::max<std::size_t>(count * sizeof(T), 1)));
    fill(block, 0xff, count * sizeof(T));
    data_ = static_cast<T*>(block);
  }
  explicit device_array(const std::vector<T>& host) : device_array(host.size()) { put(host); }
  device_array(device_array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  device_array& operator=(device_array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~device_array() { cudaFree(const_cast<void*>(static_cast<const void*>(data_))); }

  T* data() const { return data_; }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

  void put(const std::vector<T>& host) {
    must(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    must(cudaStreamSynchronize(nullptr));
  }
  std::vector<T> get() const {
    std::vector<T> host(count_);
    must(cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

/// A stream of its own.
class device_stream {
 public:
  device_stream() { must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  device_stream(const device_stream&) = delete;
  device_stream& operator=(const device_stream&) = delete;
  ~device_stream() { cudaStreamDestroy(stream_); }
  flashmemory::stream_ref ref() const { return flashmemory::stream_ref(stream_); }
  cudaStream_t get() const { return stream_; }
  void wait() const { must(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace flashmemory_test
