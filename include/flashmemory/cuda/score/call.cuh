// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/score.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Scoring of index keys, for engines that instantiate it with policies of their own.
namespace scoring {

// How an index key is read. Such a policy is a plain struct, passed to kernels by value, with
//
//   at(page, key, page_keys)   key `key` of a page of `page_keys` keys at `page`: something with
//       four(i, x)             elements 4 i .. 4 i + 3 of 128 as floats
//       scale()                what all are multiplied with
//   page_bytes(page_keys)      from a page to the next where pages lie back to back
//
// The tensor-core kernel takes e4m3_keys alone, and those planar.

/// e4m3 elements, and an f32 scale behind each key's or behind all of a page's: see index_key_layout.
struct e4m3_keys {
  bool interleaved = false;

  /// An e4m3 number. A sign-extended byte shifted left by 7 is the f16 number 2^-8 times as large once bit 14 is cleared.
  __device__ __forceinline__ static float number(std::uint32_t byte) {
    if ((byte & 0x7f) == 0x7f) return __uint_as_float(0x7fc00000u);
    const auto bits = static_cast<std::uint16_t>((byte & 0x80) << 8 | (byte & 0x7f) << 7);
    return __half2float(__ushort_as_half(bits)) * 256.0f;
  }

  /// A key's elements.
  struct reader {
    const std::uint32_t* words;
    const float* factor;
    __device__ __forceinline__ void four(std::int32_t i, float (&x)[4]) const {
      const std::uint32_t word = words[i];
      for (int j = 0; j < 4; ++j) x[j] = number(word >> 8 * j & 0xff);
    }
    __device__ __forceinline__ float scale() const { return *factor; }
  };
  __device__ __forceinline__ reader at(const std::byte* page, std::int64_t key,
                                       std::int32_t page_keys) const {
    const std::byte* const values = page + key * (interleaved ? 132 : 128);
    const std::byte* const scales =
        interleaved ? values + 128 : page + std::int64_t{page_keys} * 128 + key * 4;
    return {reinterpret_cast<const std::uint32_t*>(values), reinterpret_cast<const float*>(scales)};
  }
  __device__ __forceinline__ std::int64_t page_bytes(std::int32_t page_keys) const {
    return std::int64_t{page_keys} * 132;
  }
};

// What becomes of a logit before anything is done with it. Such a policy is a plain struct, passed to kernels by value, with
//
//   operator()(logit, job, key)   job is its score_job

/// Nothing.
struct plain_logits {
  __device__ __forceinline__ float operator()(float logit, const score_job&, std::int32_t) const {
    return logit;
  }
};

/// Everything a kernel gets, by value. Queries are e4m3, [heads, 128], as score_job says.
/// \tparam Keys    how an index key is read
/// \tparam Logits  what becomes of a logit
template <class Keys = e4m3_keys, class Logits = plain_logits>
struct call {
  using keys_type = Keys;

  const score_job* jobs = nullptr;         ///< [num_jobs], device
  std::int32_t num_jobs = 0;               ///< at least 1
  std::int32_t heads = 0;                  ///< as score_options
  std::int32_t page_keys = 64;             ///< as score_options::keys_per_page
  bool above = false;                      ///< as score_options
  unsigned long long* counters = nullptr;  ///< as score_options::counters; for `above`
  std::uint8_t* masks = nullptr;           ///< [mask_tiles, 8], device, whatever is in it; for `above`
  std::int32_t mask_tiles = 0;             ///< of 64 keys, over all jobs
  Keys keys;
  Logits logits;
};

}  // namespace scoring
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
