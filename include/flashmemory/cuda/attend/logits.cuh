// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <flashmemory/cuda/core/ptx.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

// What happens to a logit. Such a policy is a plain struct, passed to kernels by value, with
//
//   operator()(dot, place)     q . k to a logit in units of log2, that is times log2(e); -inf hides the entry
//   has_sink(), sink(head)     whether heads have a logit without a value in their denominators, and it in units of log2
//
// What lies in a hidden entry must still be numbers: a weight of zero does not hide a NaN in V.

/// log2(e), and its inverse.
inline constexpr float log2e = 1.44269504f, ln2 = 0.693147181f;

/// A query and an entry whose logit it is.
struct logit_place {
  std::int32_t row;       ///< of the step
  std::int32_t token;     ///< of the row, [0, query_tokens)
  std::int32_t head;      ///< query head
  std::int32_t entry;     ///< of the row's list
  std::int64_t position;  ///< of the entry in the sequence, as its policy counts
  std::int64_t query;     ///< of the last entry that the query sees: its own
};

/// Scale, soft cap and sinks: what sparse_attend() has.
struct capped_logits {
  float scale = 0;               ///< the softmax scale times log2(e); with a soft cap, the scale alone
  float soft_cap = 0;            ///< c > 0: c tanh(logit / c), after scaling
  const float* sinks = nullptr;  ///< [query heads], device, unscaled; or null
  std::int64_t sink_stride = 1;

  /// \param softmax_scale  multiplies q . k
  /// \param cap            or 0
  static capped_logits of(float softmax_scale, float cap = 0) noexcept {
    capped_logits logits;
    logits.soft_cap = cap;
    logits.scale = cap > 0 ? softmax_scale : softmax_scale * log2e;
    return logits;
  }
  __device__ __forceinline__ float operator()(float dot, const logit_place&) const {
    if (soft_cap == 0) return dot * scale;
    // tanh(x) = 1 - 2 / (1 + e^2x): off by 1e-7 of the cap at most, infinities included.
    const float e = ptx::exp2(2 * log2e * (dot * scale / soft_cap));
    return log2e * soft_cap * (1 - 2 / (1 + e));
  }
  __device__ __forceinline__ bool has_sink() const { return sinks != nullptr; }
  __device__ __forceinline__ float sink(std::int32_t head) const { return sinks[head * sink_stride] * log2e; }
};

/// ALiBi: slope * (position of the entry - that of the query) on top of another policy.
template <class Base = capped_logits>
struct alibi_logits {
  Base base;
  const float* slopes = nullptr;  ///< [query heads], device

  __device__ __forceinline__ float operator()(float dot, const logit_place& place) const {
    return base(dot, place) + slopes[place.head] * log2e * float(place.position - place.query);
  }
  __device__ __forceinline__ bool has_sink() const { return base.has_sink(); }
  __device__ __forceinline__ float sink(std::int32_t head) const { return base.sink(head); }
};

/// A mask of the engine's own, e.g. of a tree of drafted tokens, on top of another policy.
template <class Base = capped_logits>
struct masked_logits {
  Base base;
  const std::uint8_t* mask = nullptr;  ///< [rows, query tokens, positions], device: 0 hides the entry
  std::int64_t row_stride = 0, token_stride = 0;

  __device__ __forceinline__ float operator()(float dot, const logit_place& place) const {
    const bool seen = mask[place.row * row_stride + place.token * token_stride + place.position] != 0;
    return seen ? base(dot, place) : -INFINITY;
  }
  __device__ __forceinline__ bool has_sink() const { return base.has_sink(); }
  __device__ __forceinline__ float sink(std::int32_t head) const { return base.sink(head); }
};

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
