// SPDX-License-Identifier: MIT
#include "cuda/store/lane.hpp"

#include <algorithm>
#include <thread>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

namespace {

/// The runtime keeps "not ready" as its last error, where the check of a later launch would find it.
cudaError_t ask(cudaEvent_t event) noexcept {
  const cudaError_t code = cudaEventQuery(event);
  if (code == cudaErrorNotReady) cudaGetLastError();
  return code;
}

}  // namespace

cudaError_t wait_for(cudaEvent_t event, std::chrono::milliseconds deadline) noexcept {
  using clock = std::chrono::steady_clock;
  cudaError_t code = ask(event);
  if (code != cudaErrorNotReady) return code;
  const auto start = clock::now();
  while ((code = ask(event)) == cudaErrorNotReady) {
    const auto passed = clock::now() - start;
    if (passed >= deadline) break;
    // Most waits are for a few microseconds; one that is not leaves the core to others.
    if (passed > std::chrono::milliseconds(1)) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return code;
}

cudaError_t copy_lane::open() noexcept {
  cudaError_t code = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  for (std::size_t i = 0; code == cudaSuccess && i < ring; ++i)
    code = cudaEventCreateWithFlags(&events_[i], cudaEventDisableTiming);
  return code;
}

void copy_lane::close() noexcept {
  for (cudaEvent_t& event : events_) {
    if (event) cudaEventDestroy(event);
    event = nullptr;
  }
  if (stream_) cudaStreamDestroy(stream_);
  stream_ = nullptr;
}

cudaError_t copy_lane::mark_on(cudaStream_t other) noexcept {
  const cudaError_t code = cudaEventRecord(event(issued_ + 1), other);
  if (code == cudaSuccess) ++issued_;
  return code;
}

cudaError_t copy_lane::query(std::uint64_t ticket) noexcept {
  if (ticket <= done_) return cudaSuccess;
  const cudaError_t code = ask(event(ticket));
  if (code == cudaSuccess) done_ = std::max(done_, stands_for(ticket));
  return code;
}

cudaError_t copy_lane::wait(std::uint64_t ticket, std::chrono::milliseconds deadline) noexcept {
  if (ticket <= done_) return cudaSuccess;
  const cudaError_t code = wait_for(event(ticket), deadline);
  if (code == cudaSuccess) done_ = std::max(done_, stands_for(ticket));
  return code;
}

cudaError_t copy_lane::hold_back(cudaStream_t other, std::uint64_t ticket, std::uint64_t* seen) noexcept {
  if (ticket <= done_ || ticket <= *seen) return cudaSuccess;
  const cudaError_t code = cudaStreamWaitEvent(other, event(ticket), 0);
  if (code == cudaSuccess) *seen = stands_for(ticket);
  return code;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
