// SPDX-License-Identifier: MIT
// The inner loops. Included once per SIMD target by kernel.cpp, hence no plain include guard.
#if defined(FLASHMEMORY_ATTEND_KERNEL_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_ATTEND_KERNEL_INL
#undef FLASHMEMORY_ATTEND_KERNEL_INL
#else
#define FLASHMEMORY_ATTEND_KERNEL_INL
#endif

#include <hwy/cache_control.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "src/attend/call.hpp"
#include "src/core/convert.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Accumulators, operands and queries of a tile must fit in the registers: 32 of them or 16.
#undef FLASHMEMORY_ATTEND_TILE_ROWS
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
#define FLASHMEMORY_ATTEND_TILE_ROWS 4
#else
#define FLASHMEMORY_ATTEND_TILE_ROWS 2
#endif
inline constexpr int tile_rows = FLASHMEMORY_ATTEND_TILE_ROWS;

template <class D>
inline constexpr int lanes = static_cast<int>(hn::MaxLanes(D()));

/// Loads 2 N elements as floats. The two vectors together hold them in an order of the kernel's own (bf16:
/// even ones, odd ones), which queries and sums share, so that widening needs no shuffle.
template <class D>
HWY_INLINE void load_pair(D d, const float* from, hn::Vec<D>& a, hn::Vec<D>& b) {
  a = hn::LoadU(d, from);
  b = hn::LoadU(d, from + lanes<D>);
}

template <class D>
HWY_INLINE void load_pair(D d, const float16* from, hn::Vec<D>& a, hn::Vec<D>& b) {
#if HWY_TARGET == HWY_SCALAR
  a = hn::Set(d, to_float(from[0]));
  b = hn::Set(d, to_float(from[1]));
#else
  const hn::Rebind<hwy::float16_t, D> half;
  const auto* bits = reinterpret_cast<const hwy::float16_t*>(from);
  a = hn::PromoteTo(d, hn::LoadU(half, bits));
  b = hn::PromoteTo(d, hn::LoadU(half, bits + lanes<D>));
#endif
}

template <class D>
HWY_INLINE void load_pair(D d, const bfloat16* from, hn::Vec<D>& a, hn::Vec<D>& b) {
#if HWY_TARGET == HWY_SCALAR
  a = hn::Set(d, to_float(from[0]));
  b = hn::Set(d, to_float(from[1]));
#else
  const hn::RebindToUnsigned<D> words;
  const hn::Repartition<std::uint16_t, D> halves;
  const auto bits = hn::BitCast(words, hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(from)));
  a = hn::BitCast(d, hn::ShiftLeft<16>(bits));
  b = hn::BitCast(d, hn::And(bits, hn::Set(words, 0xffff0000u)));
#endif
}

/// Brings `dim` floats from the natural order into load_pair's order for T, scaled.
template <class T, class D>
HWY_INLINE void pack(D d, const float* from, int dim, float scale, float* to) {
  const auto factor = hn::Set(d, scale);
  for (int i = 0; i < dim; i += 2 * lanes<D>) {
    hn::Vec<D> a, b;
    if constexpr (std::is_same_v<T, bfloat16>) {
      hn::LoadInterleaved2(d, from + i, a, b);
    } else {
      load_pair(d, from + i, a, b);
    }
    hn::StoreU(hn::Mul(a, factor), d, to + i);
    hn::StoreU(hn::Mul(b, factor), d, to + i + lanes<D>);
  }
}

/// The way back.
template <class T, class D>
HWY_INLINE void store_pair(D d, hn::Vec<D> a, hn::Vec<D> b, float* to) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    hn::StoreInterleaved2(a, b, d, to);
  } else {
    hn::StoreU(a, d, to);
    hn::StoreU(b, d, to + lanes<D>);
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Adds the 128-bit blocks of a vector.
template <class D>
HWY_INLINE auto add_blocks(D d, hn::Vec<D> v) {
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
template <class T>
struct rows_view {
  const std::byte* const* start = nullptr;
  std::size_t offset = 0;
  int count = 0;
  int length = 0;  ///< elements

  HWY_INLINE const T* operator[](int i) const { return reinterpret_cast<const T*>(start[i] + offset); }

  HWY_INLINE void prefetch(int i) const {
    const std::byte* line = start[i] + offset;
    for (int b = 0; b < length * int(sizeof(T)); b += 64) hwy::Prefetch(line + b);
  }
};

/// logits[r][e] = q[r] . keys[e] for kRows rows and the first `count` keys, four keys at a time (up to three
/// logits beyond the count are written). Meanwhile it fetches the rows that will be read next.
template <int kRows, class T, class D>
HWY_NOINLINE void dot_tile(D d, const float* HWY_RESTRICT q, const rows_view<T>& keys, int count,
                           const rows_view<T>& next, float* HWY_RESTRICT logits) {
  using V = hn::Vec<D>;
  const int last = count - 1, dim = keys.length;
  for (int e = 0; e < count; e += 4) {
    const T* const k[4] = {keys[e], keys[HWY_MIN(e + 1, last)], keys[HWY_MIN(e + 2, last)],
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
        load_pair(d, k[n] + i, a, b);
        for (int r = 0; r < kRows; ++r) {
          sum[r][n] = hn::MulAdd(qa[r], a, sum[r][n]);
          sum[r][n] = hn::MulAdd(qb[r], b, sum[r][n]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      store_sums(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], logits + r * attend_block + e);
    }
  }
}

/// NaN stays NaN: Highway's functions, made for speed, may turn it into a number.
template <class D>
HWY_INLINE hn::Vec<D> exp_or_nan(D d, hn::Vec<D> x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

/// logit = cap * tanh(logit / cap), and -inf behind the last one up to a full vector.
template <class D>
HWY_INLINE void finish_logits(D d, float* HWY_RESTRICT logits, int count, float cap) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  for (int i = count; i % lanes<D> != 0; ++i) logits[i] = -inf;
  if (cap <= 0) return;
  const auto c = hn::Set(d, cap);
  for (int i = 0; i < count; i += lanes<D>) {
    const auto x = hn::LoadU(d, logits + i);
    const auto capped = hn::Mul(c, hn::Tanh(d, hn::Div(x, c)));
    hn::StoreU(hn::IfThenElse(hn::IsNaN(x), x, capped), d, logits + i);
  }
  for (int i = count; i % lanes<D> != 0; ++i) logits[i] = -inf;
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
template <int kRows, int kPairs, class T, class D>
HWY_INLINE void add_columns(D d, const float* HWY_RESTRICT weights, const float* HWY_RESTRICT factors,
                            const rows_view<T>& values, int count, int from, const rows_view<T>& next,
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
  for (int e = 0; e < count; ++e) {
    if (next_at < next.count && e % next_every == 0) next.prefetch(next_at++);
    V v[2 * kPairs];
    for (int p = 0; p < kPairs; ++p) {
      load_pair(d, values[e] + from + p * 2 * lanes<D>, v[2 * p], v[2 * p + 1]);
    }
    for (int r = 0; r < kRows; ++r) {
      const V weight = hn::Set(d, weights[r * attend_block + e]);
      for (int p = 0; p < 2 * kPairs; ++p) sum[r][p] = hn::MulAdd(weight, v[p], sum[r][p]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < 2 * kPairs; ++p) {
      hn::StoreU(sum[r][p], d, sums + r * dim + from + p * lanes<D>);
    }
  }
}

template <int kRows, class T, class D>
HWY_NOINLINE void add_tile(D d, const float* HWY_RESTRICT weights, const float* HWY_RESTRICT factors,
                           const rows_view<T>& values, int count, const rows_view<T>& next,
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
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
