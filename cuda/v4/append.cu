// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "core/error.hpp"
#include "v4/checks.hpp"
#include "v4/pool.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

constexpr int warps = 4;

/// e4m3 codes of two finite floats, to nearest even, saturated; the first in the low byte.
__device__ __forceinline__ std::uint32_t narrow(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  std::uint32_t codes = 0;
  const float pair[2] = {low, high};
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t bits = __float_as_uint(pair[i]), magnitude = bits & 0x7fffffffu;
    std::uint32_t code;
    if (magnitude >= 0x43e00000u) {  // 448 and beyond
      code = 0x7e;
    } else if (magnitude < 0x3c800000u) {  // subnormal: one ulp of 2^14 is 2^-9, so the adder rounds
      code = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 16384.0f)) - 0x46800000u;
    } else {
      code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
    }
    codes |= (bits >> 24 & 0x80u | code) << 8 * i;
  }
  return codes;
#endif
}

__device__ __forceinline__ void load16(const float* from, float (&x)[16]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(from) + i);
    x[4 * i] = v.x;
    x[4 * i + 1] = v.y;
    x[4 * i + 2] = v.z;
    x[4 * i + 3] = v.w;
  }
}

__device__ __forceinline__ void load16(const __nv_bfloat16* from, float (&x)[16]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(from) + i);
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[8 * i + 2 * j] = __uint_as_float(words[j] << 16);
      x[8 * i + 2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
    }
  }
}

/// A warp per row, 16 values per lane: lanes 4g to 4g+3 hold group g, the last four the rotated values. Reads 1 or 2 KB
/// and writes 584 bytes per row.
template <class T>
__global__ void __launch_bounds__(32 * warps)
    append_kernel(device_pool pool, const T* values, std::int64_t stride, const std::int32_t* locations,
                  std::int64_t rows) {
  const std::int64_t row = std::int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= rows) return;
  const device_place place = find(pool, __ldg(locations + row));
  if (place.row == nullptr) return;
  const int lane = threadIdx.x % 32;
  float x[16];
  load16(values + row * stride + lane * 16, x);

  std::uint32_t amax = __float_as_uint(1e-4f);
#pragma unroll
  for (int i = 0; i < 16; ++i) amax = max(amax, __float_as_uint(x[i]) & 0x7fffffffu);
  amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 1));
  amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 2));
  const bool finite = amax < 0x7f800000u;
  // ceil(log2(amax / 448)) + 127: 448 is 1.75 * 2^8
  const std::uint32_t byte = finite ? (amax >> 23) - 8 + ((amax & 0x7fffffu) > 0x600000u ? 1 : 0) : 255;

  std::uint32_t scales[2] = {0, 0};
#pragma unroll
  for (int g = 0; g < scale_groups; ++g)
    scales[g / 4] |= __shfl_sync(0xffffffffu, byte, 4 * g) << 8 * (g % 4);
  if (lane == 0) *reinterpret_cast<uint2*>(place.scales) = make_uint2(scales[0], scales[1]);

  if (lane < nope_dim / 16) {
    const float inverse = __uint_as_float((254 - byte) << 23);
    std::uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = finite ? narrow(__fmul_rn(x[4 * i], inverse), __fmul_rn(x[4 * i + 1], inverse)) |
                              narrow(__fmul_rn(x[4 * i + 2], inverse), __fmul_rn(x[4 * i + 3], inverse)) << 16
                        : 0x7f7f7f7fu;
    }
    *reinterpret_cast<uint4*>(place.row + lane * 16) = make_uint4(codes[0], codes[1], codes[2], codes[3]);
  } else {
    std::uint32_t halves[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t bits = __float_as_uint(x[i]);
      const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
      halves[i] = (nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    }
    auto* to = reinterpret_cast<uint4*>(place.row + nope_dim + (lane - nope_dim / 16) * 32);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t* h = halves + 8 * i;
      to[i] = make_uint4(h[0] | h[1] << 16, h[2] | h[3] << 16, h[4] | h[5] << 16, h[6] | h[7] << 16);
    }
  }
}

}  // namespace

status append_entries(const page_pool& pool, const_tensor<2> values, view<const std::int32_t, 1> locations,
                      stream_ref stream, fault* error) noexcept {
  using detail::refuse;
  const std::int64_t rows = values.shape[0];
  if (rows < 0 || rows > (std::int64_t{1} << 31)) return refuse(status::bad_shape, "rows", 0, rows, error);
  if (values.shape[1] != entry_dim) {
    return refuse(status::bad_shape, "values of an entry", entry_dim, values.shape[1], error);
  }
  if (values.type != dtype::f32 && values.type != dtype::bf16) {
    return refuse(status::bad_dtype, "values", -1, -1, error);
  }
  const std::int64_t units = 16 / static_cast<std::int64_t>(size_of(values.type));
  if (values.stride[1] != 1) return refuse(status::bad_shape, "stride of values", 1, values.stride[1], error);
  if (values.stride[0] % units != 0) {
    return refuse(status::bad_shape, "row stride of values", units, values.stride[0], error);
  }
  if (locations.shape[0] != rows)
    return refuse(status::bad_shape, "locations", rows, locations.shape[0], error);
  if (locations.stride[0] != 1 && rows > 1) {
    return refuse(status::bad_shape, "stride of locations", 1, locations.stride[0], error);
  }
  device_pool target;
  if (const status bad = to_device(pool, target, error); bad != status::ok) return bad;
  if (rows == 0) return status::ok;
  if (values.data == nullptr) return refuse(status::null_data, "values", -1, -1, error);
  if (!aligned(values.data)) return refuse(status::bad_argument, "alignment of values", 16, -1, error);
  if (locations.data == nullptr) return refuse(status::null_data, "locations", -1, -1, error);
  const auto blocks = static_cast<unsigned>((rows + warps - 1) / warps);
  const auto queue = static_cast<cudaStream_t>(stream.cuda());
  if (values.type == dtype::f32) {
    append_kernel<<<blocks, 32 * warps, 0, queue>>>(target, static_cast<const float*>(values.data),
                                                    values.stride[0], locations.data, rows);
  } else {
    append_kernel<<<blocks, 32 * warps, 0, queue>>>(target, static_cast<const __nv_bfloat16*>(values.data),
                                                    values.stride[0], locations.data, rows);
  }
  return detail::check_launch("append_entries", error);
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
