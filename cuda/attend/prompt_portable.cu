// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/attend/prompt_portable.cuh>

#include "cuda/attend/prompt_instance.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

cudaError_t launch_prompt_portable(const prompt_arguments& in, cudaStream_t stream) noexcept {
  switch (in.type) {
    case dtype::bf16:
      return attend::launch_prompt_portable(prompt_call_of<__nv_bfloat16>(in), stream);
    case dtype::f16:
      return attend::launch_prompt_portable(prompt_call_of<__half>(in), stream);
    default:
      return attend::launch_prompt_portable(prompt_call_of<float>(in), stream);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
