// SPDX-License-Identifier: MIT
#include "src/train/label/attention_kernel.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/train/label/attention_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// after highway.h
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using float_tag = hn::CappedTag<float, 16>;

// A tile of kRows rows by two vectors of entries: its sums stay in registers while dim passes.
template <int kRows>
HWY_INLINE void tile(const float* q, std::int64_t dim, const float* panel, float* logits,
                     std::int64_t stride) {
  const float_tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t e = 0; e < panel_entries; e += 2 * lanes) {
    hn::Vec<float_tag> low[kRows], high[kRows];
    for (int r = 0; r < kRows; ++r) low[r] = high[r] = hn::Zero(d);
    for (std::int64_t i = 0; i < dim; ++i) {
      const auto k0 = hn::LoadU(d, panel + i * panel_entries + e);
      const auto k1 = hn::LoadU(d, panel + i * panel_entries + e + lanes);
      for (int r = 0; r < kRows; ++r) {
        const auto x = hn::Set(d, q[r * dim + i]);
        low[r] = hn::MulAdd(x, k0, low[r]);
        high[r] = hn::MulAdd(x, k1, high[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      hn::StoreU(low[r], d, logits + r * stride + e);
      hn::StoreU(high[r], d, logits + r * stride + e + lanes);
    }
  }
}

void PanelLogits(const float* q, std::int64_t rows, std::int64_t dim, const float* panel, float* logits,
                 std::int64_t stride) {
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile<4>(q + r * dim, dim, panel, logits + r * stride, stride);
  for (; r < rows; ++r) tile<1>(q + r * dim, dim, panel, logits + r * stride, stride);
}

float LargestLogit(const float* logits, std::int64_t count) {
  const float_tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const float least = -std::numeric_limits<float>::infinity(), most = std::numeric_limits<float>::max();
  auto best = hn::Set(d, least);
  auto bad = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::LoadU(d, logits + i);
    best = hn::Max(best, x);
    bad = hn::Or(bad, hn::VecFromMask(d, hn::Not(hn::Le(x, hn::Set(d, most)))));
  }
  bool unusable = !hn::AllTrue(d, hn::Eq(hn::And(bad, hn::Set(d, 1.0f)), hn::Zero(d)));
  float largest = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; i < count; ++i) {
    unusable |= !(logits[i] <= most);
    largest = std::max(largest, logits[i]);
  }
  return unusable ? std::numeric_limits<float>::quiet_NaN() : largest;
}

double SumOfExp(const float* logits, std::int64_t count, float shift) {
  const float_tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr std::int64_t block = 1024;
  const auto by = hn::Set(d, shift);
  double sum = 0;
  std::int64_t i = 0;
  while (i + lanes <= count) {
    const std::int64_t end = std::min(count - lanes, i + block - lanes);
    auto part = hn::Zero(d);
    for (; i <= end; i += lanes) part = hn::Add(part, hn::Exp(d, hn::Sub(hn::LoadU(d, logits + i), by)));
    sum += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, part)));
  }
  for (; i < count; ++i) sum += std::exp(static_cast<double>(logits[i]) - static_cast<double>(shift));
  return sum;
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

HWY_EXPORT(PanelLogits);
HWY_EXPORT(LargestLogit);
HWY_EXPORT(SumOfExp);

void panel_logits(const float* q, std::int64_t rows, std::int64_t dim, const float* panel, float* logits,
                  std::int64_t stride) noexcept {
  HWY_DYNAMIC_DISPATCH(PanelLogits)(q, rows, dim, panel, logits, stride);
}

float largest_logit(const float* logits, std::int64_t count) noexcept {
  return HWY_DYNAMIC_DISPATCH(LargestLogit)(logits, count);
}

double sum_of_exp(const float* logits, std::int64_t count, float shift) noexcept {
  return HWY_DYNAMIC_DISPATCH(SumOfExp)(logits, count, shift);
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
#endif
