// SPDX-License-Identifier: MIT
// What is written, and tensors whose type is known at run time.
#if defined(FLASHMEMORY_CPU_ATTEND_OUTPUT_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_CPU_ATTEND_OUTPUT_INL
#undef FLASHMEMORY_CPU_ATTEND_OUTPUT_INL
#else
#define FLASHMEMORY_CPU_ATTEND_OUTPUT_INL
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <flashmemory/detail/convert.hpp>
#include <flashmemory/view.hpp>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace cpu {
namespace attend {
namespace HWY_NAMESPACE {

/// Calls f with the typed pointer to an element of a tensor, so that loops decide about the type once.
template <class Void, class F>
HWY_INLINE void at_element(Void* data, dtype type, std::int64_t element, const F& f) {
  constexpr bool read = std::is_const_v<Void>;
  switch (type) {
    case dtype::f32:
      return f(static_cast<std::conditional_t<read, const float, float>*>(data) + element);
    case dtype::bf16:
      return f(static_cast<std::conditional_t<read, const bfloat16, bfloat16>*>(data) + element);
    case dtype::f16:
      return f(static_cast<std::conditional_t<read, const float16, float16>*>(data) + element);
  }
}

// Such a policy is a plain struct with
//
//   store(row, head, values, dim)          a row's result
//   has_lse(), store_lse(row, head, lse)   whether it is wanted, and the natural log of the softmax denominator

/// A tensor, and the denominators' logs.
struct dense_output {
  tensor<3> out;  ///< [rows of q, query heads, value_dim], any strides
  view<float, 2>
      lse;  ///< [rows of q, query heads], data null = not wanted; -inf for a row that attends to nothing

  void store(std::int64_t row, std::int64_t head, const float* values, int dim) const {
    const std::int64_t to = row * out.stride[0] + head * out.stride[1], step = out.stride[2];
    at_element(out.data, out.type, to, [&](auto* p) HWY_ATTR {
      if (step == 1) {
        for (int i = 0; i < dim; ++i) detail::from_float(values[i], p[i]);
      } else {
        for (int i = 0; i < dim; ++i) detail::from_float(values[i], p[i * step]);
      }
    });
  }
  bool has_lse() const { return lse.data != nullptr; }
  void store_lse(std::int64_t row, std::int64_t head, float value) const { lse(row, head) = value; }
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
}  // namespace cpu
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
