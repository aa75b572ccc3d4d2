// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/attend/tensor_core.cuh>

#include "cuda/attend/instance.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

namespace {

template <class T>
cudaError_t launch(const attend_arguments& in, cudaStream_t stream) noexcept {
  switch (in.work.key_dim) {
    case 64:
      return attend::launch_tensor_core<64>(call_of<T>(in), stream);
    case 128:
      return attend::launch_tensor_core<128>(call_of<T>(in), stream);
    case 256:
      return attend::launch_tensor_core<256>(call_of<T>(in), stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch_tensor_core(const attend_arguments& in, cudaStream_t stream) noexcept {
  return in.type == dtype::bf16 ? launch<__nv_bfloat16>(in, stream) : launch<__half>(in, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
