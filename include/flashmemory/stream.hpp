// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace flashmemory {
inline namespace v0 {

/// The order in which a call's work happens. On the CPU backend work happens in the call,
/// `stream_ref::host()`. It cannot be made from 0 or nullptr by accident; CUDA's default stream must be asked
/// for by name.
class stream_ref {
 public:
  stream_ref() = delete;
  stream_ref(std::nullptr_t) = delete;
  stream_ref(int) = delete;

  /// A CUDA stream; must not be null.
  explicit constexpr stream_ref(CUstream_st* cuda) noexcept : cuda_(cuda) {}

  /// No stream: the CPU backend.
  static constexpr stream_ref host() noexcept { return stream_ref(static_cast<CUstream_st*>(nullptr)); }

  /// Whether it is host().
  constexpr bool is_host() const noexcept { return cuda_ == nullptr; }
  /// The CUDA stream; null for host().
  constexpr CUstream_st* cuda() const noexcept { return cuda_; }

 private:
  CUstream_st* cuda_;
};

}  // namespace v0
}  // namespace flashmemory
