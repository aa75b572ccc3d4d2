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
inline constexpr int vector_block = 2;
inline constexpr std::size_t column_block = vector_block * float_lanes;

/// acc[r][v] += sum over d of a[r * lda + d] * b[d * ldb + v * lanes ..]; every sum runs over d in order, so
/// a lane's result does not depend on what stands beside it.
template <int kRows>
HWY_INLINE void block_dot(const float* HWY_RESTRICT a, std::ptrdiff_t lda, const float* HWY_RESTRICT b,
                          std::ptrdiff_t ldb, std::ptrdiff_t depth, float_vec (&acc)[kRows][vector_block]) {
  const float_tag d;
  for (std::ptrdiff_t i = 0; i < depth; ++i) {
    const auto b0 = hn::Load(d, b + i * ldb);
    const auto b1 = hn::Load(d, b + i * ldb + static_cast<std::ptrdiff_t>(float_lanes));
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const auto scalar = hn::Set(d, a[r * lda + i]);
      acc[r][0] = hn::MulAdd(scalar, b0, acc[r][0]);
      acc[r][1] = hn::MulAdd(scalar, b1, acc[r][1]);
    }
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
