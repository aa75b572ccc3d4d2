// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/score/portable.cuh>

#include "cuda/score/instance.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

cudaError_t launch_clear_chunks(const score_arguments& arguments, int blocks, cudaStream_t stream) noexcept {
  return scoring::launch_clear_chunks(call_of(arguments), blocks, stream);
}

cudaError_t launch_score_portable(const score_arguments& arguments, int blocks,
                                  cudaStream_t stream) noexcept {
  return scoring::launch_portable(call_of(arguments), blocks, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
