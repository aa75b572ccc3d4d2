// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <vector>

namespace engine {

inline void ok(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}

/// A copy of a vector in device memory; null of an empty one.
template <class T>
class on_device {
 public:
  explicit on_device(const std::vector<T>& from) : count_(from.size()) {
    if (count_ == 0) return;
    ok(cudaMalloc(&data_, count_ * sizeof(T)));
    ok(cudaMemcpy(data_, from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  on_device(const on_device&) = delete;
  on_device& operator=(const on_device&) = delete;
  ~on_device() { cudaFree(data_); }
  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> back() const {
    std::vector<T> to(count_);
    ok(cudaMemcpy(to.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }

 private:
  std::size_t count_;
  void* data_ = nullptr;
};

}  // namespace engine
