// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/attend/prompt_hopper.cuh>

#include "cuda/attend/prompt_instance.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

cudaError_t launch_prompt_f16(const prompt_arguments& in, cudaStream_t stream) noexcept {
  switch (in.work.key_dim) {
    case 64:
      return attend::launch_prompt_hopper<64>(prompt_call_of<__half>(in), stream);
    case 128:
      return attend::launch_prompt_hopper<128>(prompt_call_of<__half>(in), stream);
    case 256:
      return attend::launch_prompt_hopper<256>(prompt_call_of<__half>(in), stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
