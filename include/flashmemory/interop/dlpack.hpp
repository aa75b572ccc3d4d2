// SPDX-License-Identifier: MIT
#pragma once

/// \file
/// DLPack tensors as views, for hosts that have them. Uses the caller's own <dlpack/dlpack.h>.

#include <dlpack/dlpack.h>

#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// Sets `out` to what a DLTensor describes: byte_offset honoured, null strides mean compact.
/// \param device  where the tensor must lie: nothing in a view says so. kDLCPU also takes host memory that is pinned
///     for a device, kDLCUDA memory that CUDA manages
/// \returns false if its rank is not `Rank`, its element type is none of f32, bf16 and f16, or it lies elsewhere
template <int Rank>
bool from_dlpack(const DLTensor& in, tensor<Rank>& out, DLDeviceType device = kDLCPU) noexcept {
  if (in.ndim != Rank || in.dtype.lanes != 1) return false;
  const DLDeviceType at = in.device.device_type;
  if (at != device && !(device == kDLCPU && at == kDLCUDAHost) &&
      !(device == kDLCUDA && at == kDLCUDAManaged))
    return false;
  if (in.dtype.code == kDLFloat && in.dtype.bits == 32) {
    out.type = dtype::f32;
  } else if (in.dtype.code == kDLFloat && in.dtype.bits == 16) {
    out.type = dtype::f16;
  } else if (in.dtype.code == kDLBfloat && in.dtype.bits == 16) {
    out.type = dtype::bf16;
  } else {
    return false;
  }
  out.data = static_cast<char*>(in.data) + in.byte_offset;
  std::int64_t step = 1;
  for (int d = Rank - 1; d >= 0; --d) {
    out.shape[d] = in.shape[d];
    out.stride[d] = in.strides ? in.strides[d] : step;
    step *= in.shape[d];
  }
  return true;
}

}  // namespace v0
}  // namespace flashmemory
