// SPDX-License-Identifier: MIT
// The library's own instances of the kernels: what they are called with.
#if defined(FLASHMEMORY_ATTEND_CHUNK_CALL_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_ATTEND_CHUNK_CALL_INL
#undef FLASHMEMORY_ATTEND_CHUNK_CALL_INL
#else
#define FLASHMEMORY_ATTEND_CHUNK_CALL_INL
#endif

#include <flashmemory/cpu/attend/attend-inl.hpp>

#include "src/attend/call.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

namespace fma = cpu::attend;
namespace hna = cpu::attend::HWY_NAMESPACE;
namespace hn = hwy::HWY_NAMESPACE;

/// The policies of the library's own instances: elements as stored, scale, soft cap and sinks.
template <class T>
using chunk_call = hna::call<hna::plain<T>, hna::plain<T>, hna::capped_logits, hna::dense_output>;

template <class T>
chunk_call<T> call_of(const attend_call& in) noexcept {
  const chunk_layout layout(in.geometry);
  chunk_call<T> call;
  call.logits.softmax_scale = in.scale;
  call.logits.soft_cap = in.soft_cap;
  call.logits.sinks = in.sinks;
  call.output.out = in.out;
  call.output.lse = in.lse;
  call.q = in.q;
  call.group = in.group;
  call.key_dim = in.geometry.key_dim;
  call.value_dim = in.geometry.value_dim;
  call.key_head_bytes = std::int64_t(layout.key_block_bytes());
  call.value_head_bytes = std::int64_t(layout.value_block_bytes());
  return call;
}

inline fma::query_tokens tokens_of(const attend_call& call, const attend_unit& unit) noexcept {
  fma::query_tokens tokens;
  tokens.first_token = unit.first_token;
  tokens.position = unit.position;
  tokens.tokens = unit.tokens;
  tokens.tokens_per_entry = call.geometry.tokens_per_entry;
  tokens.ascending = unit.list == nullptr;
  return tokens;
}

/// Calls f(T{}, D{}) for the store's element type.
template <class F>
auto with_types(const kv_geometry& geometry, const F& f) noexcept {
  return hna::with_lanes(geometry.key_dim, geometry.value_dim, [&](auto d) HWY_ATTR {
    switch (geometry.type) {
      case dtype::f16:
        return f(float16{}, d);
      case dtype::bf16:
        return f(bfloat16{}, d);
      default:
        return f(0.0f, d);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
