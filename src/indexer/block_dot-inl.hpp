// SPDX-License-Identifier: MIT
// Per-target include guard, as Highway's own -inl headers have it.
#if defined(FLASHMEMORY_BLOCK_DOT_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_BLOCK_DOT_INL
#undef FLASHMEMORY_BLOCK_DOT_INL
#else
#define FLASHMEMORY_BLOCK_DOT_INL
#endif

#include <hwy/highway.h>

#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using float_tag = hn::CappedTag<float, 16>;
using float_vec = hn::Vec<float_tag>;
inline constexpr std::size_t float_lanes = hn::MaxLanes(float_tag());

// Rows that share one pass over the columns: as many accumulators as the registers hold beside the operands.
// FMAs of latency 4 on two ports need 8; 16 also halve the loads per FMA.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
inline constexpr int row_block = 4;
#else
inline constexpr int row_block = 8;
#endif
inline constexpr std::size_t column_block = 2 * float_lanes;

/// c[r * ldc + j] = (kAdd ? c[r * ldc + j] : 0) + sum over i of a[r * lda + i] * b[i * ldb + j], for
/// column_block columns j. Every sum runs over i in order, so no result depends on what stands beside it.
/// Not inlined: among the caller's values GCC 12 would keep an accumulator in memory, at half the speed.
template <int kRows, bool kAdd>
HWY_NOINLINE void block_dot(const float* HWY_RESTRICT a, std::ptrdiff_t lda, const float* HWY_RESTRICT b,
                            std::ptrdiff_t ldb, std::ptrdiff_t depth, float* HWY_RESTRICT c,
                            std::ptrdiff_t ldc) {
  const float_tag d;
  constexpr auto lanes = static_cast<std::ptrdiff_t>(float_lanes);
  float_vec c0[kRows], c1[kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    c0[r] = kAdd ? hn::Load(d, c + r * ldc) : hn::Zero(d);
    c1[r] = kAdd ? hn::Load(d, c + r * ldc + lanes) : hn::Zero(d);
  }
  for (std::ptrdiff_t i = 0; i < depth; ++i) {
    const auto b0 = hn::Load(d, b + i * ldb);
    const auto b1 = hn::Load(d, b + i * ldb + lanes);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const auto scalar = hn::Set(d, a[r * lda + i]);
      c0[r] = hn::MulAdd(scalar, b0, c0[r]);
      c1[r] = hn::MulAdd(scalar, b1, c1[r]);
    }
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    hn::Store(c0[r], d, c + r * ldc);
    hn::Store(c1[r], d, c + r * ldc + lanes);
  }
}

/// Calls f(row, std::integral_constant<int, n>) for blocks that cover [0, rows).
template <class F>
HWY_INLINE void for_row_blocks(std::int32_t rows, const F& f) {
  std::int32_t r = 0;
  for (; r + row_block <= rows; r += row_block) f(r, std::integral_constant<int, row_block>());
  if constexpr (row_block > 4) {
    if (r + 4 <= rows) {
      f(r, std::integral_constant<int, 4>());
      r += 4;
    }
  }
  if (r + 2 <= rows) {
    f(r, std::integral_constant<int, 2>());
    r += 2;
  }
  if (r < rows) f(r, std::integral_constant<int, 1>());
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif
