// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/attend/call.hpp"

// The kernels keep arrays of vectors, which vectors of unknown length cannot form; such machines use NEON.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/attend/kernel.cpp"
#include <hwy/foreach_target.h>
//
#include <flashmemory/cpu/attend/attend-inl.hpp>

#include "src/attend/chunk_call-inl.hpp"
#include "src/attend/entry_walk.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

template <class T, class D>
void run_typed(D d, const attend_call& call, std::int64_t index) noexcept {
  const attend_unit* after =
      std::upper_bound(call.units, call.units + call.unit_count, index,
                       [](std::int64_t task, const attend_unit& unit) { return task < unit.first_task; });
  const attend_unit& unit = *(after - 1);
  const std::int64_t local = index - unit.first_task, split = local % unit.splits;
  const fma::query_part part = call.part(unit, local / unit.splits);
  const std::int64_t length = unit.list != nullptr ? unit.list_count : unit.chunk_count;
  const std::int64_t begin = std::min(length, split * unit.split_length);
  const std::int64_t end = std::min(length, begin + unit.split_length);
  const std::int64_t last_token = (part.row + part.rows - 1) / call.group;
  const fma::query_tokens tokens = tokens_of(call, unit);
  // The rows of a part follow each other: it has all rows of its heads, or one head.
  const std::int64_t base = call.partial(unit, split, part.head, part.row);
  hna::attend_part(d, call_of<T>(call), tokens, part,
                   entry_walk(call, unit, begin, end, tokens.visible(last_token)), call.states + base,
                   call.sums + base * call.geometry.value_dim);
}

template <class T, class D>
void join_typed(D d, const attend_call& call, const attend_unit& unit, std::int64_t head) noexcept {
  const chunk_call<T> of_type = call_of<T>(call);
  const std::int64_t rows = std::int64_t{unit.tokens} * call.group;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t at = call.partial(unit, 0, head, row);
    hna::join_row(d, of_type, unit.first_token + row / call.group, head * call.group + row % call.group,
                  unit.splits, call.geometry.kv_heads * rows, call.states + at,
                  call.sums + at * call.geometry.value_dim);
  }
}

/// Softmax weight that a query row gives to a block, given the row's lse.
template <class T, class D>
float block_mass(D d, const chunk_call<T>& call, const float* q, const fma::entry_block& block,
                 std::int64_t head, const fma::query_place& place, float lse) noexcept {
  HWY_ALIGN float logits[fma::block_entries];
  const auto keys = hna::keys_of(call, block, head);
  hna::dot_rows(d, 1, q, keys, block.count, decltype(keys){}, logits);
  hna::finish_logits(d, call, block, head, block.count, place, logits);
  auto sum = hn::Zero(d);
  for (int i = 0; i < block.count; i += hna::lanes<D>) {
    sum = hn::Add(sum, hna::exp_or_nan(d, hn::Sub(hn::LoadU(d, logits + i), hn::Set(d, lse))));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

template <class T, class D>
float chunk_mass_typed(D d, const attend_call& call, view<const float, 2> lse, std::int64_t index) noexcept {
  const attend_unit& unit = call.units[0];
  const chunk_call<T> of_type = call_of<T>(call);
  const fma::query_tokens tokens = tokens_of(call, unit);
  HWY_ALIGN float q[fma::max_dim];
  fma::entry_block block;
  float best = 0;
  for (std::int64_t head = 0; head < call.geometry.kv_heads; ++head) {
    for (std::int64_t row = 0; row < std::int64_t{unit.tokens} * call.group; ++row) {
      const std::int64_t token = row / call.group;
      const fma::query_place place = {token, std::int32_t(head * call.group + row % call.group),
                                      tokens.visible(token) - 1};
      const float base = lse(token, place.head);
      if (base == -std::numeric_limits<float>::infinity()) continue;  // attended to nothing
      hna::pack_queries(d, of_type, tokens, head, row, 1, q);
      entry_walk walk(call, unit, index, index + 1, tokens.visible(token));
      float sum = 0;
      for (walk.fill(block); block.count > 0; walk.fill(block)) {
        sum += block_mass<T>(d, of_type, q, block, head, place, base);
      }
      if (std::isnan(sum)) return sum;
      best = std::max(best, sum);
    }
  }
  return best;
}

void run_task(const attend_call& call, std::int64_t index) {
  with_types(call.geometry, [&](auto t, auto d) HWY_ATTR { run_typed<decltype(t)>(d, call, index); });
}

void join_splits(const attend_call& call, const attend_unit& unit, std::int64_t head) {
  with_types(call.geometry, [&](auto t, auto d) HWY_ATTR { join_typed<decltype(t)>(d, call, unit, head); });
}

float chunk_mass(const attend_call& call, view<const float, 2> lse, std::int64_t index) {
  return with_types(call.geometry, [&](auto t, auto d) HWY_ATTR {
    return chunk_mass_typed<decltype(t)>(d, call, lse, index);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashmemory {
inline namespace v0 {
namespace detail {

HWY_EXPORT(run_task);
HWY_EXPORT(join_splits);
HWY_EXPORT(chunk_mass);

void run_attend_task(const attend_call& call, std::int64_t index) noexcept {
  HWY_DYNAMIC_DISPATCH(run_task)(call, index);
}

void join_attend_splits(const attend_call& call, const attend_unit& unit, std::int64_t head) noexcept {
  HWY_DYNAMIC_DISPATCH(join_splits)(call, unit, head);
}

float attend_chunk_mass(const attend_call& call, view<const float, 2> lse, std::int64_t index) noexcept {
  return HWY_DYNAMIC_DISPATCH(chunk_mass)(call, lse, index);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
#endif  // HWY_ONCE
