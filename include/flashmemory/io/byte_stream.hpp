// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmemory {
inline namespace v0 {

/// Where a set-up call may write bytes to instead of a file, front to back: a socket, an object store, memory.
struct byte_sink {
  void* context = nullptr;

  /// Takes all of `bytes` bytes, or returns false, which ends the call with an io_failure. Must not throw.
  bool (*write)(void* context, const void* data, std::size_t bytes) = nullptr;
};

/// Where a set-up call may read bytes from instead of a file, front to back.
struct byte_source {
  void* context = nullptr;

  /// Writes at most `bytes` bytes to `data`. How many it were; 0 at the end, negative if it fails, which ends the call
  /// with an io_failure. It may block; it is asked for no byte behind the last one that belongs to what is read. Must
  /// not throw.
  std::int64_t (*read)(void* context, void* data, std::size_t bytes) = nullptr;
};

}  // namespace v0
}  // namespace flashmemory
