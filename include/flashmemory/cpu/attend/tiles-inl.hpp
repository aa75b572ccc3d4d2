// SPDX-License-Identifier: MIT
// The inner loops: a few query rows against a block of entries.
#if defined(FLASHMEMORY_CPU_ATTEND_TILES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_CPU_ATTEND_TILES_INL
#undef FLASHMEMORY_CPU_ATTEND_TILES_INL
#else
#define FLASHMEMORY_CPU_ATTEND_TILES_INL
#endif

#include <hwy/cache_control.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <flashmemory/cpu/attend/elements-inl.hpp>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace cpu {
namespace attend {
namespace HWY_NAMESPACE {

// Accumulators, operands and queries of a tile must fit in the registers: 32 of them or 16.
#undef FLASHMEMORY_CPU_ATTEND_TILE_ROWS
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
#define FLASHMEMORY_CPU_ATTEND_TILE_ROWS 4
#else
#define FLASHMEMORY_CPU_ATTEND_TILE_ROWS 2
#endif
inline constexpr int tile_rows = FLASHMEMORY_CPU_ATTEND_TILE_ROWS;

/// Brings `dim` floats from the natural order into load_pair's order for Keys, scaled.
template <class Keys, class D>
HWY_INLINE void pack(D d, const float* from, int dim, float scale, float* to) {
  const auto factor = hn::Set(d, scale);
  for (int i = 0; i < dim; i += 2 * lanes<D>) {
    hn::Vec<D> a, b;
    if constexpr (Keys::interleaved) {
      hn::LoadInterleaved2(d, from + i, a, b);
    } else {
      load_pair(d, from + i, a, b);
    }
    hn::StoreU(hn::Mul(a, factor), d, to + i);
    hn::StoreU(hn::Mul(b, factor), d, to + i + lanes<D>);
  }
}

/// The way back.
template <class Values, class D>
HWY_INLINE void store_pair(D d, hn::Vec<D> a, hn::Vec<D> b, float* to) {
  if constexpr (Values::interleaved) {
    hn::StoreInterleaved2(a, b, d, to);
  } else {
    hn::StoreU(a, d, to);
    hn::StoreU(b, d, to + lanes<D>);
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Adds the 128-bit blocks of a vector.
template <class D>
HWY_INLINE auto add_blocks([[maybe_unused]] D d, hn::Vec<D> v) {
  if constexpr (lanes<D> <= 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return add_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}
#endif

/// Stores the sums over the lanes of four vectors. The order of additions is always the same, whatever else
/// a tile computes.
template <class D>
HWY_INLINE void store_sums(D d, hn::Vec<D> a, hn::Vec<D> b, hn::Vec<D> c, hn::Vec<D> e, float* to) {
#if HWY_TARGET == HWY_SCALAR
  hn::StoreU(a, d, to);
  hn::StoreU(b, d, to + 1);
  hn::StoreU(c, d, to + 2);
  hn::StoreU(e, d, to + 3);
#else
  const hn::RepartitionToWide<hn::RebindToUnsigned<D> > wide;
  const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto low = hn::InterleaveLower(wide, hn::BitCast(wide, ab), hn::BitCast(wide, ce));
  const auto high = hn::InterleaveUpper(wide, hn::BitCast(wide, ab), hn::BitCast(wide, ce));
  const hn::CappedTag<float, 4> four;
  hn::StoreU(add_blocks(d, hn::Add(hn::BitCast(d, low), hn::BitCast(d, high))), four, to);
#endif
}

/// Rows of equal length, one for each entry of a block, at one KV head's place in each.
template <class Elements>
struct rows_view {
  const std::byte* const* start = nullptr;
  std::ptrdiff_t offset = 0;
  int count = 0;
  int length = 0;  ///< elements

  HWY_INLINE const std::byte* operator[](int i) const { return start[i] + offset; }

  HWY_INLINE void prefetch(int i) const {
    const std::byte* line = start[i] + offset;
    for (int b = 0; b < int(Elements::bytes(length)); b += 64) hwy::Prefetch(line + b);
  }
};

/// logits[r][e] = q[r] . keys[e] for kRows rows and the first `count` keys, four keys at a time (up to three
/// logits beyond the count are written). Meanwhile it fetches the rows that will be read next.
template <int kRows, class Keys, class Values, class D>
HWY_NOINLINE void dot_tile(D d, const float* HWY_RESTRICT q, const rows_view<Keys>& keys, int count,
                           const rows_view<Values>& next, float* HWY_RESTRICT logits) {
  using V = hn::Vec<D>;
  const int last = count - 1, dim = keys.length;
  for (int e = 0; e < count; e += 4) {
    const std::byte* const k[4] = {keys[e], keys[HWY_MIN(e + 1, last)], keys[HWY_MIN(e + 2, last)],
                                   keys[HWY_MIN(e + 3, last)]};
    for (int n = e; n < HWY_MIN(e + 4, next.count); ++n) next.prefetch(n);
    V sum[kRows][4];
    for (auto& row : sum) {
      for (V& s : row) s = hn::Zero(d);
    }
    for (int i = 0; i < dim; i += 2 * lanes<D>) {
      V qa[kRows], qb[kRows];
      for (int r = 0; r < kRows; ++r) {
        qa[r] = hn::LoadU(d, q + r * dim + i);
        qb[r] = hn::LoadU(d, q + r * dim + i + lanes<D>);
      }
      for (int n = 0; n < 4; ++n) {
        V a, b;
        Keys::load(d, k[n], i, a, b);
        for (int r = 0; r < kRows; ++r) {
          sum[r][n] = hn::MulAdd(qa[r], a, sum[r][n]);
          sum[r][n] = hn::MulAdd(qb[r], b, sum[r][n]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      store_sums(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], logits + r * block_entries + e);
    }
  }
}

/// NaN stays NaN: Highway's functions, made for speed, may turn it into a number.
template <class D>
HWY_INLINE hn::Vec<D> exp_or_nan(D d, hn::Vec<D> x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

/// -inf behind the last logit up to a full vector.
template <class D>
HWY_INLINE void pad_logits(D, float* logits, int count) {
  for (int i = count; i % lanes<D> != 0; ++i) logits[i] = -std::numeric_limits<float>::infinity();
}

/// Turns logits into weights exp(logit - max) and brings the running state up to date.
/// \returns what earlier sums must be multiplied with
template <class D>
HWY_INLINE float weigh(D d, float* HWY_RESTRICT logits, int count, softmax_state& state) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  auto top = hn::Set(d, -inf);
  for (int i = 0; i < count; i += lanes<D>) top = hn::Max(top, hn::LoadU(d, logits + i));
  const float block_max = hn::GetLane(hn::MaxOfLanes(d, top));
  const float max = block_max > state.max ? block_max : state.max;
  const float base = max == -inf ? 0 : max;  // -inf logits have no weight, not even among themselves
  auto sum = hn::Zero(d);
  const auto subtract = hn::Set(d, base);
  for (int i = 0; i < count; i += lanes<D>) {
    const auto weight = exp_or_nan(d, hn::Sub(hn::LoadU(d, logits + i), subtract));
    hn::StoreU(weight, d, logits + i);
    sum = hn::Add(sum, weight);
  }
  const float factor = max == state.max ? 1.0f : std::exp(state.max - base);
  state.sum = state.sum * factor + hn::GetLane(hn::SumOfLanes(d, sum));
  state.max = max;
  return factor;
}

/// sums[r] = sums[r] * factors[r] + sum over e of weights[r][e] * values[e], for kPairs * 2 N dims from
/// `from` on.
template <int kRows, int kPairs, class Values, class Keys, class D>
HWY_INLINE void add_columns(D d, const float* HWY_RESTRICT weights, const float* HWY_RESTRICT factors,
                            const rows_view<Values>& values, int count, int from, const rows_view<Keys>& next,
                            int next_every, int& next_at, float* HWY_RESTRICT sums) {
  using V = hn::Vec<D>;
  const int dim = values.length;
  V sum[kRows][2 * kPairs];
  for (int r = 0; r < kRows; ++r) {
    const V factor = hn::Set(d, factors[r]);
    for (int p = 0; p < 2 * kPairs; ++p) {
      sum[r][p] = hn::Mul(hn::LoadU(d, sums + r * dim + from + p * lanes<D>), factor);
    }
  }
  int until_next = 0;  // counted down: a remainder would cost more than the sums of an entry
  for (int e = 0; e < count; ++e) {
    if (until_next-- == 0) {
      until_next = next_every - 1;
      if (next_at < next.count) next.prefetch(next_at++);
    }
    V v[2 * kPairs];
    for (int p = 0; p < kPairs; ++p) {
      Values::load(d, values[e], from + p * 2 * lanes<D>, v[2 * p], v[2 * p + 1]);
    }
    for (int r = 0; r < kRows; ++r) {
      const V weight = hn::Set(d, weights[r * block_entries + e]);
      for (int p = 0; p < 2 * kPairs; ++p) sum[r][p] = hn::MulAdd(weight, v[p], sum[r][p]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < 2 * kPairs; ++p) {
      hn::StoreU(sum[r][p], d, sums + r * dim + from + p * lanes<D>);
    }
  }
}

template <int kRows, class Values, class Keys, class D>
HWY_NOINLINE void add_tile(D d, const float* HWY_RESTRICT weights, const float* HWY_RESTRICT factors,
                           const rows_view<Values>& values, int count, const rows_view<Keys>& next,
                           float* HWY_RESTRICT sums) {
  constexpr int pairs = 2;
  // Spread over all passes, for memory to be busy all the time.
  const int passes = HWY_MAX(1, values.length / (pairs * 2 * lanes<D>));
  int from = 0, next_at = 0;
  for (; from + pairs * 2 * lanes<D> <= values.length; from += pairs * 2 * lanes<D>) {
    add_columns<kRows, pairs>(d, weights, factors, values, count, from, next, passes, next_at, sums);
  }
  for (; from < values.length; from += 2 * lanes<D>) {
    add_columns<kRows, 1>(d, weights, factors, values, count, from, next, passes, next_at, sums);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
}  // namespace cpu
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
