// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <chrono>
#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Waits for an event, at most until `deadline`, without handing the thread to the driver. \returns
/// cudaErrorNotReady at the deadline
cudaError_t wait_for(cudaEvent_t event, std::chrono::milliseconds deadline) noexcept;

/// A stream of copies in one direction. What is enqueued is numbered by tickets, and a ticket can be asked about and
/// waited for long after: its event may by then have been recorded for a later ticket, which only makes it stronger.
class copy_lane {
 public:
  copy_lane() = default;
  copy_lane(const copy_lane&) = delete;
  copy_lane& operator=(const copy_lane&) = delete;
  ~copy_lane() { close(); }

  cudaError_t open() noexcept;
  void close() noexcept;

  cudaStream_t stream() const noexcept { return stream_; }
  /// Of the newest mark().
  std::uint64_t issued() const noexcept { return issued_; }
  /// The ticket that the next mark() gives out.
  std::uint64_t next() const noexcept { return issued_ + 1; }

  /// Puts an event behind everything that has been enqueued.
  cudaError_t mark() noexcept { return mark_on(stream_); }

  /// The same for work that was enqueued on another stream while nothing was under way here. What is enqueued here
  /// later has to come after it.
  cudaError_t mark_on(cudaStream_t other) noexcept;

  /// cudaSuccess if everything up to the ticket has happened, cudaErrorNotReady if not.
  cudaError_t query(std::uint64_t ticket) noexcept;
  cudaError_t wait(std::uint64_t ticket, std::chrono::milliseconds deadline) noexcept;

  /// What is enqueued on `other` from now on happens after the ticket. `*seen` is the newest ticket for which
  /// that was so already.
  cudaError_t hold_back(cudaStream_t other, std::uint64_t ticket, std::uint64_t* seen) noexcept;

 private:
  static constexpr std::size_t ring = 256;
  cudaEvent_t event(std::uint64_t ticket) const noexcept { return events_[ticket % ring]; }
  /// What the ticket's event stands for now.
  std::uint64_t stands_for(std::uint64_t ticket) const noexcept {
    return ticket > issued_ ? issued_ : ticket + (issued_ - ticket) / ring * ring;
  }

  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, ring> events_{};
  std::uint64_t issued_ = 0;
  std::uint64_t done_ = 0;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
