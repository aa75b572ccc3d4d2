// SPDX-License-Identifier: MIT
#pragma once

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The Walsh-Hadamard transform (Sylvester order) of a warp's vector of 128, without its factor of 1 / sqrt(128): strides
/// 1 and 2 inside a lane, 4 to 64 between lanes 1 to 16 apart.
__device__ __forceinline__ void hadamard_sums(float (&q)[4], int lane) {
  const float a = q[0] + q[1], b = q[0] - q[1], c = q[2] + q[3], d = q[2] - q[3];
  q[0] = a + c;
  q[1] = b + d;
  q[2] = a - c;
  q[3] = b - d;
  for (int step = 1; step < 32; step *= 2)
    for (int i = 0; i < 4; ++i) {
      const float other = __shfl_xor_sync(~0u, q[i], step);
      q[i] = (lane & step) != 0 ? other - q[i] : q[i] + other;
    }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
