// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/store/transfer.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Whether the build has the kernel for bulk copies (compute capability 9.0) that the current device can run; if so, it
/// is made ready for launch_gather().
FLASHMEMORY_API bool has_bulk_gather() noexcept;

/// Copies `count` blocks of `bytes` bytes each, a multiple of 16 between 16-byte aligned addresses, by a kernel of
/// `num_sms` blocks that reads mapped host memory (or anything else it can address) itself:
/// with `bulk` by bulk copies, which has_bulk_gather() must have allowed, else by loads and stores.
FLASHMEMORY_API cudaError_t launch_gather(const copy_span* spans, std::int64_t count, std::size_t bytes,
                                          int num_sms, bool bulk, cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
