// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A launch that may start while the kernel before it in the stream ends; the kernel waits for that one
/// before it touches global memory. With `allowed` false, as it has to be before compute capability 9.0, an
/// ordinary launch, and then of single blocks.
/// \param cluster blocks of a cluster
template <class... Parameter, class... Argument>
cudaError_t launch_overlapped(void (*kernel)(Parameter...), dim3 grid, int threads, std::size_t shared_bytes,
                              cudaStream_t stream, bool allowed, unsigned cluster,
                              const Argument&... argument) noexcept {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = !allowed ? 0 : cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, argument...);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
