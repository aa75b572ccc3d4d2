// SPDX-License-Identifier: MIT
#pragma once

// Copies of boxes by tensor maps (PTX ISA 9.7.9.25.5), sm_90.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/cuda/core/ptx.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace ptx {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// Copies the box at these coordinates and counts all its bytes on `barrier`, those outside of the map too.
__device__ __forceinline__ void tensor_copy(shared_address to, const CUtensorMap& map, int c0, int c1, int c2,
                                            int c3, int c4, shared_address barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(to.value),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier.value)
      : "memory");
}

/// Brings a map that is a parameter of the kernel where copies find it.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

#endif

}  // namespace ptx
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
