// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/memory.hpp>

namespace flashmemory {
inline namespace v0 {

class tiered_chunk_store;

namespace cuda {

/// One GPU as this library uses it. It is stated once, to make_store(); selectors, steps and tables take it from the
/// store.
struct context {
  std::int32_t ordinal = 0;  ///< CUDA ordinal; calls set it and restore what was current

  /// Device memory aligned to 256 bytes; null functions = cudaMalloc. The store zeroes what it takes.
  memory_resource memory;
  /// Host memory that the device can read and write, e.g. cudaHostAlloc; null functions = the library's own choice: for a
  /// store's backing memory mapped pages that are touched by several threads and then registered, else cudaHostAlloc.
  memory_resource pinned;

  /// The longest that any call waits for the device.
  std::chrono::milliseconds deadline{5000};

  std::int32_t num_sms =
      0;  ///< multiprocessors that attention and scoring occupy, so that others stay free; 0 = all
};

/// The context that a store was made with.
/// \throws argument_error with unsupported if the store was not made by cuda::make_store()
FLASHMEMORY_API const context& context_of(const tiered_chunk_store& store);

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
