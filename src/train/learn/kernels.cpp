// SPDX-License-Identifier: MIT
#include "src/train/learn/kernels.hpp"

#include <algorithm>
#include <cmath>
#include <flashmemory/indexer/index_key.hpp>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/train/learn/kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class Real>
HWY_INLINE void reduce(const Real* HWY_RESTRICT dots, std::int64_t keys, std::int64_t heads,
                       std::int64_t windows, const Real* HWY_RESTRICT gates, Real offset,
                       Real* HWY_RESTRICT best, std::int32_t* HWY_RESTRICT where) {
  const hn::ScalableTag<Real> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  const std::int64_t columns = heads * windows;
  std::int64_t w = 0;
  for (; w + lanes <= windows; w += lanes) {
    auto top = hn::Set(d, -std::numeric_limits<Real>::infinity());
    auto at = hn::Zero(d);  // key numbers are small integers, exact in either type
    for (std::int64_t key = 0; key < keys; ++key) {
      auto z = hn::Set(d, offset);
      const Real* row = dots + key * columns + w;
      for (std::int64_t h = 0; h < heads; ++h) {
        z = hn::MulAdd(hn::LoadU(d, gates + h * windows + w), hn::Max(hn::LoadU(d, row + h * windows), zero),
                       z);
      }
      const auto better = hn::Or(hn::Gt(z, top), hn::Ne(z, z));  // NaN must not go unseen
      top = hn::IfThenElse(better, z, top);
      at = hn::IfThenElse(better, hn::Set(d, static_cast<Real>(key)), at);
    }
    hn::StoreU(top, d, best + w);
    HWY_ALIGN Real numbers[hn::MaxLanes(d)];
    hn::Store(at, d, numbers);
    for (std::int64_t i = 0; i < lanes; ++i) where[w + i] = static_cast<std::int32_t>(numbers[i]);
  }
  for (; w < windows; ++w) {
    best[w] = -std::numeric_limits<Real>::infinity();
    where[w] = 0;
    for (std::int64_t key = 0; key < keys; ++key) {
      Real z = offset;
      for (std::int64_t h = 0; h < heads; ++h) {
        const Real s = dots[key * columns + h * windows + w];
        z += gates[h * windows + w] * (s > 0 ? s : s <= 0 ? Real{0} : s);
      }
      if (z > best[w] || z != z) {
        best[w] = z;
        where[w] = static_cast<std::int32_t>(key);
      }
    }
  }
}

template <class Real>
HWY_INLINE void query_gradient(const Real* HWY_RESTRICT key, Real dz, std::int64_t heads,
                               const Real* HWY_RESTRICT queries, std::int64_t head_stride,
                               const Real* HWY_RESTRICT gates, std::int64_t gate_stride,
                               Real* HWY_RESTRICT d_queries, Real* HWY_RESTRICT d_gates,
                               Real* HWY_RESTRICT c) {
  const hn::CappedTag<Real, 16> d;
  constexpr int lanes = static_cast<int>(hn::MaxLanes(d));
  for (std::int64_t h = 0; h < heads; ++h) {
    const Real* q = queries + h * head_stride;
    auto s0 = hn::Zero(d), s1 = hn::Zero(d);
    for (int i = 0; i < index_key_dim; i += 2 * lanes) {
      s0 = hn::MulAdd(hn::LoadU(d, q + i), hn::LoadU(d, key + i), s0);
      s1 = hn::MulAdd(hn::LoadU(d, q + i + lanes), hn::LoadU(d, key + i + lanes), s1);
    }
    const Real s = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
    if (!(s > 0)) {
      c[h] = 0;
      continue;
    }
    d_gates[h * gate_stride] += dz * s;
    c[h] = dz * gates[h * gate_stride];
    const auto factor = hn::Set(d, c[h]);
    Real* out = d_queries + h * head_stride;
    for (int i = 0; i < index_key_dim; i += lanes) {
      hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, key + i), hn::LoadU(d, out + i)), d, out + i);
    }
  }
}

template <class Real>
HWY_INLINE void key_gradient(const Real* HWY_RESTRICT c, std::int64_t heads, const Real* HWY_RESTRICT queries,
                             std::int64_t head_stride, Real* HWY_RESTRICT d_key) {
  const hn::CappedTag<Real, 16> d;
  constexpr int lanes = static_cast<int>(hn::MaxLanes(d));
  for (int i = 0; i < index_key_dim; i += 2 * lanes) {
    auto sum0 = hn::LoadU(d, d_key + i), sum1 = hn::LoadU(d, d_key + i + lanes);
    for (std::int64_t h = 0; h < heads; ++h) {
      const auto factor = hn::Set(d, c[h]);
      sum0 = hn::MulAdd(factor, hn::LoadU(d, queries + h * head_stride + i), sum0);
      sum1 = hn::MulAdd(factor, hn::LoadU(d, queries + h * head_stride + i + lanes), sum1);
    }
    hn::StoreU(sum0, d, d_key + i);
    hn::StoreU(sum1, d, d_key + i + lanes);
  }
}

void ReduceFloat(const float* dots, std::int64_t keys, std::int64_t heads, std::int64_t windows,
                 const float* gates, float offset, float* best, std::int32_t* where) {
  reduce(dots, keys, heads, windows, gates, offset, best, where);
}
void QueryFloat(const float* key, float dz, std::int64_t heads, const float* queries,
                std::int64_t head_stride, const float* gates, std::int64_t gate_stride, float* d_queries,
                float* d_gates, float* c) {
  query_gradient(key, dz, heads, queries, head_stride, gates, gate_stride, d_queries, d_gates, c);
}
void KeyFloat(const float* c, std::int64_t heads, const float* queries, std::int64_t head_stride,
              float* d_key) {
  key_gradient(c, heads, queries, head_stride, d_key);
}

// The arithmetic of to_e4m3() and from_e4m3() without leaving float.
void Quantise(float* keys, std::int64_t count, float floor) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToUnsigned<decltype(d)> u;
  constexpr int lanes = static_cast<int>(hn::MaxLanes(d));
  const auto subnormal = hn::Set(d, 0x1p-6f);
  const auto adder = hn::Set(d, 0x1p14f);
  for (std::int64_t k = 0; k < count; ++k) {
    float* key = keys + k * index_key_dim;
    auto largest = hn::Set(d, floor);
    for (int i = 0; i < index_key_dim; i += lanes) largest = hn::Max(largest, hn::Abs(hn::LoadU(d, key + i)));
    const auto scale = hn::Div(hn::MaxOfLanes(d, largest), hn::Set(d, 448.0f));
    for (int i = 0; i < index_key_dim; i += lanes) {
      const auto value = hn::Div(hn::LoadU(d, key + i), scale);
      const auto magnitude = hn::Abs(value);
      const auto bits = hn::BitCast(u, magnitude);
      const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(u, 1u));
      const auto rounded =
          hn::And(hn::Add(bits, hn::Add(hn::Set(u, 0x7ffffu), odd)), hn::Set(u, 0xfff00000u));
      const auto small = hn::Sub(hn::Add(magnitude, adder), adder);
      auto result = hn::IfThenElse(hn::Lt(magnitude, subnormal), small, hn::BitCast(d, rounded));
      result = hn::IfThenElse(hn::Gt(result, hn::Set(d, 448.0f)), hn::Set(d, 448.0f), result);
      hn::StoreU(hn::Mul(hn::CopySign(result, value), scale), d, key + i);
    }
  }
}

void Adamw(const adamw_step& step, std::int64_t count, const float* HWY_RESTRICT gradient,
           float* HWY_RESTRICT parameters, float* HWY_RESTRICT m, float* HWY_RESTRICT v) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto one = [&](auto tag, std::int64_t i) {
    const auto g = hn::Mul(hn::Set(tag, step.gradient_scale), hn::LoadU(tag, gradient + i));
    const auto m1 =
        hn::MulAdd(hn::Set(tag, step.beta1), hn::LoadU(tag, m + i), hn::Mul(hn::Set(tag, 1 - step.beta1), g));
    const auto v1 = hn::MulAdd(hn::Set(tag, step.beta2), hn::LoadU(tag, v + i),
                               hn::Mul(hn::Set(tag, 1 - step.beta2), hn::Mul(g, g)));
    hn::StoreU(m1, tag, m + i);
    hn::StoreU(v1, tag, v + i);
    const auto root = hn::Add(hn::Sqrt(hn::Div(v1, hn::Set(tag, step.correction2))), hn::Set(tag, step.eps));
    const auto p = hn::LoadU(tag, parameters + i);
    const auto direction =
        hn::MulAdd(hn::Set(tag, step.decay), p, hn::Div(hn::Div(m1, hn::Set(tag, step.correction1)), root));
    hn::StoreU(hn::NegMulAdd(hn::Set(tag, step.rate), direction, p), tag, parameters + i);
  };
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) one(d, i);
  for (; i < count; ++i) one(hn::CappedTag<float, 1>(), i);
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

HWY_EXPORT(ReduceFloat);
HWY_EXPORT(QueryFloat);
HWY_EXPORT(KeyFloat);
HWY_EXPORT(Quantise);
HWY_EXPORT(Adamw);

template <>
void reduce_chunk(const float* dots, std::int64_t keys, std::int64_t heads, std::int64_t windows,
                  const float* gates, float offset, float* best, std::int32_t* where) noexcept {
  HWY_DYNAMIC_DISPATCH(ReduceFloat)(dots, keys, heads, windows, gates, offset, best, where);
}

template <>
void backward_query(const float* key, float dz, std::int64_t heads, const float* queries,
                    std::int64_t head_stride, const float* gates, std::int64_t gate_stride, float* d_queries,
                    float* d_gates, float* c) noexcept {
  HWY_DYNAMIC_DISPATCH(QueryFloat)
  (key, dz, heads, queries, head_stride, gates, gate_stride, d_queries, d_gates, c);
}

template <>
void backward_key(const float* c, std::int64_t heads, const float* queries, std::int64_t head_stride,
                  float* d_key) noexcept {
  HWY_DYNAMIC_DISPATCH(KeyFloat)(c, heads, queries, head_stride, d_key);
}

// Double is for gradient checks: the lines of the formulae.
template <>
void reduce_chunk(const double* dots, std::int64_t keys, std::int64_t heads, std::int64_t windows,
                  const double* gates, double offset, double* best, std::int32_t* where) noexcept {
  for (std::int64_t w = 0; w < windows; ++w) {
    for (std::int64_t key = 0; key < keys; ++key) {
      double z = offset;
      for (std::int64_t h = 0; h < heads; ++h) {
        z += gates[h * windows + w] * std::max(dots[(key * heads + h) * windows + w], 0.0);
      }
      if (key == 0 || z > best[w]) {
        best[w] = z;
        where[w] = static_cast<std::int32_t>(key);
      }
    }
  }
}

template <>
void backward_query(const double* key, double dz, std::int64_t heads, const double* queries,
                    std::int64_t head_stride, const double* gates, std::int64_t gate_stride,
                    double* d_queries, double* d_gates, double* c) noexcept {
  for (std::int64_t h = 0; h < heads; ++h) {
    double s = 0;
    for (int i = 0; i < index_key_dim; ++i) s += queries[h * head_stride + i] * key[i];
    c[h] = s > 0 ? dz * gates[h * gate_stride] : 0;
    d_gates[h * gate_stride] += dz * std::max(s, 0.0);
    for (int i = 0; i < index_key_dim; ++i) d_queries[h * head_stride + i] += c[h] * key[i];
  }
}

template <>
void backward_key(const double* c, std::int64_t heads, const double* queries, std::int64_t head_stride,
                  double* d_key) noexcept {
  for (std::int64_t h = 0; h < heads; ++h) {
    for (int i = 0; i < index_key_dim; ++i) d_key[i] += c[h] * queries[h * head_stride + i];
  }
}

void quantise_in_place(float* keys, std::int64_t count, float floor) noexcept {
  HWY_DYNAMIC_DISPATCH(Quantise)(keys, count, floor);
}

void quantise_in_place(double* keys, std::int64_t count, double floor) noexcept {
  for (std::int64_t k = 0; k < count; ++k) {
    double* key = keys + k * index_key_dim;
    double largest = floor;
    for (int i = 0; i < index_key_dim; ++i) largest = std::max(largest, std::fabs(key[i]));
    const double scale = largest / 448;
    for (int i = 0; i < index_key_dim; ++i) {
      key[i] = static_cast<double>(from_e4m3(to_e4m3(static_cast<float>(key[i] / scale)))) * scale;
    }
  }
}

void adamw(const adamw_step& step, std::int64_t count, const float* gradient, float* parameters, float* m,
           float* v) noexcept {
  HWY_DYNAMIC_DISPATCH(Adamw)(step, count, gradient, parameters, m, v);
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
#endif
