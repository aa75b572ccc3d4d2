// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/attend/entries.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

// How K, or V, is read. Such a policy is a plain struct, passed to kernels by value, with
//
//   static bytes(dim)   of one entry
//   at(from, place)     of an entry at `from`: something whose operator[](d) is element d as a float
//
// The tensor-core kernel takes plain<__nv_bfloat16> and plain<__half> alone: it multiplies what lies in memory as it is.

/// Which entry is read.
struct entry_place {
  page_id page;
  std::int32_t kv_head;
  std::int32_t entry;  ///< of the page
};

/// The number.
__device__ __forceinline__ float to_float(float x) { return x; }
/// The number.
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
/// The number.
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
/// The number.
__device__ __forceinline__ float to_float(__nv_fp8_e4m3 x) { return static_cast<float>(x); }
/// The number.
__device__ __forceinline__ float to_float(signed char x) { return x; }

/// Elements as they are: float, __nv_bfloat16 or __half.
template <class T>
struct plain {
  using element = T;
  __host__ __device__ static constexpr std::int32_t bytes(std::int32_t dim) {
    return dim * std::int32_t(sizeof(T));
  }

  /// An entry's elements.
  struct reader {
    const T* from;
    __device__ __forceinline__ float operator[](std::int32_t d) const { return to_float(from[d]); }
  };
  __device__ __forceinline__ reader at(const std::byte* from, const entry_place&) const {
    return {reinterpret_cast<const T*>(from)};
  }
};

/// One scale for all entries of a KV head.
struct head_scale {
  const float* scales = nullptr;  ///< [kv_heads], device
  __device__ __forceinline__ float operator()(const entry_place& place) const {
    return scales[place.kv_head];
  }
};

/// A scale for each entry and KV head, beside pages of page_entries.
struct entry_scale {
  const float* scales = nullptr;                                    ///< device
  std::int64_t page_stride = 0, head_stride = 0, entry_stride = 0;  ///< elements
  __device__ __forceinline__ float operator()(const entry_place& place) const {
    return scales[std::int64_t(place.page) * page_stride + place.kv_head * head_stride +
                  place.entry * entry_stride];
  }
};

/// Elements times a scale: T is __nv_fp8_e4m3 or signed char, Scale head_scale, entry_scale or an engine's own.
template <class T, class Scale>
struct scaled {
  __host__ __device__ static constexpr std::int32_t bytes(std::int32_t dim) {
    return dim * std::int32_t(sizeof(T));
  }

  Scale scale;

  /// An entry's elements.
  struct reader {
    const T* from;
    float scale;
    __device__ __forceinline__ float operator[](std::int32_t d) const { return to_float(from[d]) * scale; }
  };
  __device__ __forceinline__ reader at(const std::byte* from, const entry_place& place) const {
    return {reinterpret_cast<const T*>(from), scale(place)};
  }
};

/// Blocks of an f16 scale and 32 signed bytes, as GGML's q8_0; dims are multiples of 32, entries start at even addresses.
struct q8_0 {
  static constexpr std::int32_t block = 32, block_bytes = 34;
  __host__ __device__ static constexpr std::int32_t bytes(std::int32_t dim) {
    return dim / block * block_bytes;
  }

  /// An entry's elements.
  struct reader {
    const std::byte* from;
    __device__ __forceinline__ float operator[](std::int32_t d) const {
      const std::byte* const at = from + d / block * block_bytes;
      return __half2float(*reinterpret_cast<const __half*>(at)) *
             float(reinterpret_cast<const signed char*>(at)[2 + d % block]);
    }
  };
  __device__ __forceinline__ reader at(const std::byte* from, const entry_place&) const { return {from}; }
};

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
