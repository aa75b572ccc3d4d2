// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <flashmemory/status.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A CUDA result as a status; the details go to `error` if it is not null.
inline status check(cudaError_t code, const char* what, fault* error) noexcept {
  if (code == cudaSuccess) return status::ok;
  if (error != nullptr) {
    *error = fault{};
    error->code = status::cuda_error;
    error->os_error = static_cast<std::int32_t>(code);
    error->what = what;
  }
  return status::cuda_error;
}

/// Of the launch just made. Takes the error, so that the next call does not report it again.
inline status check_launch(const char* what, fault* error) noexcept {
  return check(cudaGetLastError(), what, error);
}

inline status refuse(status code, const char* what, std::int64_t expected, std::int64_t actual,
                     fault* error) noexcept {
  if (error != nullptr) {
    *error = fault{};
    error->code = code;
    error->what = what;
    error->expected = expected;
    error->actual = actual;
  }
  return code;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
