// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// The trainer's loops that are no GEMM, for float and double; the best instruction set of the CPU is chosen
/// at run time.

/// One chunk's scores: over its `keys` keys in order, z[w] = offset + sum over h of gates[h, w] *
/// max(dots[key, h, w], 0); best[w] = max z, where[w] = the first key that reaches it.
/// \param[in] dots  [keys, heads * windows], head-major columns
/// \param[in] gates [heads, windows]
template <class Real>
void reduce_chunk(const Real* dots, std::int64_t keys, std::int64_t heads, std::int64_t windows,
                  const Real* gates, Real offset, Real* best, std::int32_t* where) noexcept;

/// Gradient of one chunk's score for one window: with s[h] = q[h] . key,
/// d_gates[h] += dz * max(s[h], 0); c[h] = s[h] > 0 ? dz * gates[h] : 0; d_queries[h] += c[h] * key.
/// \param[in]  queries    head h at queries + h * head_stride, 128 values; d_queries likewise
/// \param[in]  gates      head h at gates + h * gate_stride; d_gates likewise
/// \param[out] c          [heads]
template <class Real>
void backward_query(const Real* key, Real dz, std::int64_t heads, const Real* queries,
                    std::int64_t head_stride, const Real* gates, std::int64_t gate_stride, Real* d_queries,
                    Real* d_gates, Real* c) noexcept;

/// d_key[128] += sum over h of c[h] * queries[h].
template <class Real>
void backward_key(const Real* c, std::int64_t heads, const Real* queries, std::int64_t head_stride,
                  Real* d_key) noexcept;

/// keys[i] <- value of its e4m3 code, with quantise_key()'s scale. [count, 128], in place.
void quantise_in_place(float* keys, std::int64_t count, float floor) noexcept;
void quantise_in_place(double* keys, std::int64_t count, double floor) noexcept;

/// One AdamW step on `count` parameters: moments are updated, then
/// p -= rate * (m / correction1 / (sqrt(v / correction2) + eps) + decay * p).
struct adamw_step {
  float rate;
  float beta1;
  float beta2;
  float eps;
  float decay;
  float correction1;
  float correction2;
  float gradient_scale;
};
void adamw(const adamw_step& step, std::int64_t count, const float* gradient, float* parameters, float* m,
           float* v) noexcept;

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
