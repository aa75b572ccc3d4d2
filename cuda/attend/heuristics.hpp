// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/store/geometry.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Most parts that a row is cut into: what the block that joins them reads stays short.
inline constexpr std::int64_t max_splits = 64;

/// Most blocks whose splits of a tile are joined through their shared memory. Larger clusters do not all find room at
/// once (of four blocks, 62 instead of 66 on an H100) or crowd on half of the multiprocessors (of sixteen).
inline constexpr std::int32_t max_cluster = 2;

/// Whether a geometry is one of those that the tensor-core kernel is compiled for.
bool has_tensor_core_kernel(const kv_geometry& g) noexcept;

/// Chunks that one block should work through, so that blocks fill the device evenly and their fixed costs do not
/// outweigh that. A pure function; its constants come from bench rows cuda/attend_gqa.
/// \param tiles  blocks of a step if nothing is cut
std::int32_t chunks_per_split(std::int64_t tiles, std::int64_t max_chunks, std::int32_t entries_per_chunk,
                              std::int32_t num_sms, std::int32_t blocks_per_sm) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
