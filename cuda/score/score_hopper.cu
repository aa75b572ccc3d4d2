// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/score/hopper.cuh>

#include "cuda/score/instance.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

bool has_score_hopper() noexcept { return scoring::has_hopper<scoring::call<>>(); }

cudaError_t launch_score_hopper(const score_arguments& arguments, int blocks, cudaStream_t stream) noexcept {
  return scoring::launch_hopper(call_of(arguments), blocks, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
