// SPDX-License-Identifier: MIT
#include "kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

// The kernels keep arrays of vectors, which vectors of unknown length cannot form; such machines use NEON.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once per target.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tinylm {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using float_tag = hn::CappedTag<float, 16>;

#if HWY_TARGET == HWY_SCALAR

/// For machines without vectors, which cannot take lanes apart.
template <int kRows, int kTokens>
void project_rows(const flashmemory::bfloat16* weights, std::int64_t cols, const float* x, float* y,
                  std::int64_t y_stride) {
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) {
      float sum = 0;
      for (std::int64_t c = 0; c < cols; ++c) {
        sum += std::bit_cast<float>(std::uint32_t{weights[r * cols + c].bits} << 16) * x[t * cols + c];
      }
      y[t * y_stride + r] = sum;
    }
  }
}

#else

/// `kRows` rows against `kTokens` tokens, each pair with an accumulator of its own: enough independent
/// additions to hide their latency.
///
/// Two bf16 of a 32-bit lane become floats without any shuffle, one by a shift and one by a mask; it is x that
/// is split into even and odd elements instead, once for all rows.
template <int kRows, int kTokens>
HWY_INLINE void project_rows(const flashmemory::bfloat16* HWY_RESTRICT weights, std::int64_t cols,
                             const float* HWY_RESTRICT x, float* HWY_RESTRICT y, std::int64_t y_stride) {
  const float_tag d;
  const hn::RebindToUnsigned<float_tag> wide;
  const hn::Repartition<std::uint16_t, float_tag> narrow;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto upper = hn::Set(wide, 0xffff0000u);
  const auto* w = reinterpret_cast<const std::uint16_t*>(weights);
  hn::Vec<float_tag> sums[kTokens][kRows];
  HWY_UNROLL(4)
  for (int t = 0; t < kTokens; ++t) {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) sums[t][r] = hn::Zero(d);
  }
  for (std::int64_t c = 0; c < cols; c += 2 * lanes) {
    hn::Vec<float_tag> even[kTokens], odd[kTokens];
    HWY_UNROLL(4)
    for (int t = 0; t < kTokens; ++t) {
      const auto low = hn::LoadU(d, x + t * cols + c);
      const auto high = hn::LoadU(d, x + t * cols + c + lanes);
      even[t] = hn::ConcatEven(d, high, low);
      odd[t] = hn::ConcatOdd(d, high, low);
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const auto pair = hn::BitCast(wide, hn::LoadU(narrow, w + r * cols + c));
      const auto first = hn::BitCast(d, hn::ShiftLeft<16>(pair));
      const auto second = hn::BitCast(d, hn::And(pair, upper));
      HWY_UNROLL(4)
      for (int t = 0; t < kTokens; ++t) {
        sums[t][r] = hn::MulAdd(first, even[t], sums[t][r]);
        sums[t][r] = hn::MulAdd(second, odd[t], sums[t][r]);
      }
    }
  }
  HWY_UNROLL(4)
  for (int t = 0; t < kTokens; ++t) {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) y[t * y_stride + r] = hn::GetLane(hn::SumOfLanes(d, sums[t][r]));
  }
}

#endif

template <int kTokens>
HWY_INLINE void project_tokens(const flashmemory::bfloat16* weights, std::int64_t first, std::int64_t last,
                               std::int64_t cols, const float* x, float* y, std::int64_t y_stride) {
  constexpr int kRows = kTokens == 4 ? 4 : 8;
  std::int64_t r = first;
  for (; r + kRows <= last; r += kRows) {
    project_rows<kRows, kTokens>(weights + r * cols, cols, x, y + r, y_stride);
  }
  for (; r < last; ++r) project_rows<1, kTokens>(weights + r * cols, cols, x, y + r, y_stride);
}

void project(const flashmemory::bfloat16* weights, std::int64_t first, std::int64_t last, std::int64_t cols,
             const float* x, std::int32_t tokens, float* y, std::int64_t y_stride) {
  std::int32_t t = 0;
  for (; t + 4 <= tokens; t += 4) {
    project_tokens<4>(weights, first, last, cols, x + t * cols, y + t * y_stride, y_stride);
  }
  for (; t + 2 <= tokens; t += 2) {
    project_tokens<2>(weights, first, last, cols, x + t * cols, y + t * y_stride, y_stride);
  }
  if (t < tokens) project_tokens<1>(weights, first, last, cols, x + t * cols, y + t * y_stride, y_stride);
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) {
  const float_tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto squares = hn::Zero(d);
  for (std::int64_t i = 0; i < width; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    squares = hn::MulAdd(v, v, squares);
  }
  const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(width);
  const auto scale = hn::Set(d, 1.0f / std::sqrt(mean + eps));
  for (std::int64_t i = 0; i < width; i += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), scale), hn::LoadU(d, weight + i)), d, out + i);
  }
}

void silu_times(float* gate, const float* up, std::int64_t width) {
  const float_tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto one = hn::Set(d, 1.0f);
  for (std::int64_t i = 0; i < width; i += lanes) {
    const auto g = hn::LoadU(d, gate + i);
    const auto sigmoid = hn::Div(one, hn::Add(one, hn::Exp(d, hn::Neg(g))));
    hn::StoreU(hn::Mul(hn::Mul(g, sigmoid), hn::LoadU(d, up + i)), d, gate + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tinylm
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tinylm {

HWY_EXPORT(project);
HWY_EXPORT(rms_norm);
HWY_EXPORT(silu_times);

void project(const flashmemory::bfloat16* weights, std::int64_t first, std::int64_t last, std::int64_t cols,
             const float* x, std::int32_t tokens, float* y, std::int64_t y_stride) noexcept {
  HWY_DYNAMIC_DISPATCH(project)(weights, first, last, cols, x, tokens, y, y_stride);
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* out) noexcept {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, weight, eps, width, out);
}

void silu_times(float* gate, const float* up, std::int64_t width) noexcept {
  HWY_DYNAMIC_DISPATCH(silu_times)(gate, up, width);
}

}  // namespace tinylm
#endif
