// SPDX-License-Identifier: MIT
// What happens to a logit.
#if defined(FLASHMEMORY_CPU_ATTEND_LOGITS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_CPU_ATTEND_LOGITS_INL
#undef FLASHMEMORY_CPU_ATTEND_LOGITS_INL
#else
#define FLASHMEMORY_CPU_ATTEND_LOGITS_INL
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstdint>
#include <flashmemory/cpu/attend/elements-inl.hpp>
#include <flashmemory/view.hpp>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace cpu {
namespace attend {
namespace HWY_NAMESPACE {

// Such a policy is a plain struct with
//
//   query_scale()   what q is multiplied with: the softmax scale
//   apply(d, logits, count, positions, place)   changes the logits of a query row and `count` entries, -inf hiding one;
//                   true if it touched them. It may read and write up to a full vector, and a plain loop will do
//   elementwise     static constexpr bool: apply() only ever does change() to each logit by itself, if changes() at all,
//                   which the kernel for prompts, whose vectors hold a logit of several rows, then calls
//   sink(head)      a logit without a value in the head's denominator; -inf = none
//
// What lies in a hidden entry must still be numbers: a weight of zero does not hide a NaN in V.

/// Scale, soft cap and sinks: what sparse_attend() has.
struct capped_logits {
  float softmax_scale = 1;
  float soft_cap = 0;          ///< c > 0: c tanh(logit / c)
  view<const float, 1> sinks;  ///< [query heads], unscaled; data null = none

  static constexpr bool elementwise = true;
  float query_scale() const { return softmax_scale; }
  bool changes() const { return soft_cap > 0; }
  template <class D>
  HWY_INLINE hn::Vec<D> change(D d, hn::Vec<D> x) const {
    const auto c = hn::Set(d, soft_cap);
    const auto capped = hn::Mul(c, hn::Tanh(d, hn::Div(x, c)));
    return hn::IfThenElse(hn::IsNaN(x), x, capped);
  }
  template <class D>
  HWY_INLINE bool apply(D d, float* HWY_RESTRICT logits, int count, const std::int64_t*,
                        const query_place&) const {
    if (!changes()) return false;
    for (int i = 0; i < count; i += lanes<D>) hn::StoreU(change(d, hn::LoadU(d, logits + i)), d, logits + i);
    return true;
  }
  float sink(std::int64_t head) const {
    return sinks.data != nullptr ? sinks(head) : -std::numeric_limits<float>::infinity();
  }
};

/// ALiBi: slope * (position of the entry - that of the query) on top of another policy.
template <class Base = capped_logits>
struct alibi_logits {
  Base base;
  const float* slopes = nullptr;  ///< [query heads]
  static constexpr bool elementwise = false;

  float query_scale() const { return base.query_scale(); }
  template <class D>
  HWY_INLINE bool apply(D d, float* HWY_RESTRICT logits, int count, const std::int64_t* positions,
                        const query_place& place) const {
    base.apply(d, logits, count, positions, place);
    const float slope = slopes[place.head];
    for (int i = 0; i < count; ++i) logits[i] += slope * float(positions[i] - place.position);
    return true;
  }
  float sink(std::int64_t head) const { return base.sink(head); }
};

/// A mask of the engine's own, e.g. of a tree of drafted tokens, on top of another policy.
template <class Base = capped_logits>
struct masked_logits {
  Base base;
  const std::uint8_t* mask = nullptr;  ///< [rows of q, positions]: 0 hides the entry
  std::int64_t row_stride = 0;

  float query_scale() const { return base.query_scale(); }
  template <class D>
  HWY_INLINE bool apply(D d, float* HWY_RESTRICT logits, int count, const std::int64_t* positions,
                        const query_place& place) const {
    base.apply(d, logits, count, positions, place);
    const std::uint8_t* const seen = mask + place.row * row_stride;
    for (int i = 0; i < count; ++i)
      if (seen[positions[i]] == 0) logits[i] = -std::numeric_limits<float>::infinity();
    return true;
  }
  float sink(std::int64_t head) const { return base.sink(head); }
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
}  // namespace cpu
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
