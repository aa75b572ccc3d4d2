// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Where one new entry goes; an element of a device table that kernels read when they run.
struct append_target {
  std::byte* chunk = nullptr;  ///< the slot, all layers; null = nothing to write
  std::int32_t entry = 0;      ///< in the chunk
  std::int32_t row = 0;        ///< of the tensors that hold the new entries
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
