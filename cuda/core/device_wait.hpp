// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Waits until everything that is queued on the current device, on whatever streams, is over, at most until `deadline`;
/// then cudaErrorNotReady. For set-up calls and destructors: it starts a thread, since the runtime has no such wait, and
/// leaves it behind at the deadline.
cudaError_t wait_for_device(std::chrono::milliseconds deadline) noexcept;

/// How long destructors wait before they rather lose memory than give away what is still in use.
inline constexpr std::chrono::milliseconds last_wait{10000};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
