// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/prompt_rows.cuh>
#include <flashmemory/cuda/core/ptx_mma.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

/// What a consumer thread knows of its two rows.
struct prompt_thread {
  std::int32_t row[2];      // of the unit
  std::int32_t visible[2];  // entries that it sees
  logit_place place[2];
};

/// Logits of a block in place, what a row does not see among them.
template <bool kLinear, class Call>
__device__ __forceinline__ void prompt_logits(const Call& call, const prompt_thread& thread, bool masked,
                                              std::int32_t first, std::int32_t count, float (&s)[32]) {
  const int t = threadIdx.x % 4;
  if constexpr (!kLinear) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      logit_place place = thread.place[i / 2 % 2];
      place.entry = first + i / 4 * 8 + 2 * t + i % 2;
      place.position = place.entry;
      if (place.entry < first + count) s[i] = call.logits(s[i], place);
    }
  }
  if (masked) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t limit = min(count, thread.visible[half] - first) - 2 * t;
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (8 * j + c >= limit) s[4 * j + 2 * half + c] = -INFINITY;
    }
  }
}

/// What a block does to its rows' maxima: they move by more than 2^8 at once or not at all, so that values are seldom
/// multiplied, and by nothing but the row and its blocks so far. `factor` is what earlier sums and values are multiplied by.
__device__ __forceinline__ void prompt_maxima(const float (&s)[32], float scale, float (&maximum)[2],
                                              float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = fmaxf(s[2 * half], s[2 * half + 1]), other = fmaxf(s[4 + 2 * half], s[5 + 2 * half]);
#pragma unroll
    for (int j = 2; j < 8; j += 2) {
      top = fmaxf(top, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
      other = fmaxf(other, fmaxf(s[4 * j + 4 + 2 * half], s[4 * j + 5 + 2 * half]));
    }
    top = fmaxf(top, other);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    top *= scale;
    const float old = maximum[half], now = top > old + prompt_slack ? top : old;
    factor[half] = now == old ? 1.0f : ptx::exp2(old - now);
    maximum[half] = now;
  }
}

/// Logits to weights, which are added to the sums.
__device__ __forceinline__ void prompt_weights(float (&s)[32], float scale, const float (&maximum)[2],
                                               const float (&factor)[2], float (&sum)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float base = maximum[half] == -INFINITY ? 0.0f : maximum[half];
    float add[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& weight = s[4 * j + 2 * half + c];
        weight = ptx::exp2(fmaf(weight, scale, -base));
        add[c] += weight;
      }
    sum[half] = sum[half] * factor[half] + (add[0] + add[1]);
  }
}

/// Weights as the fragments that they are multiplied from.
template <class T>
__device__ __forceinline__ void prompt_pack(const float (&s)[32], std::uint32_t (&p)[4][4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[k][i] = ptx::pack<T>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
}

/// A number that all lanes have, as one that the compiler knows they all have: descriptors are made of it.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

/// Keeps what `sum` is made of before what follows: the assembler moves a wait for multiplications up to where nothing
/// stands in its way. Stores sums above 1e37, of which there are none, where nobody looks.
__device__ __forceinline__ void done_before(float& unused, float sum) {
  asm volatile("{\n.reg .pred p;\nsetp.gt.f32 p, %0, 0f7e000000;\n@p st.shared.f32 [%1], %0;\n}\n" ::"f"(sum),
               "r"(ptx::shared_address(&unused).value)
               : "memory");
}

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
