// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Makes a device current and what was current before again.
class device_guard {
 public:
  explicit device_guard(int device) noexcept {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    if (before_ != device) cudaSetDevice(device);
    changed_ = before_ != device;
  }
  ~device_guard() {
    if (changed_) cudaSetDevice(before_);
  }
  device_guard(const device_guard&) = delete;
  device_guard& operator=(const device_guard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
