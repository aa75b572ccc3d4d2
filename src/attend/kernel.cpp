// SPDX-License-Identifier: MIT
#include "src/attend/call.hpp"

// The kernels keep arrays of vectors, which vectors of unknown length cannot form; such machines use NEON.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/attend/kernel.cpp"
#include <hwy/foreach_target.h>
//
#include "src/attend/task-inl.hpp"

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
  const attend_part part = call.part(unit, local / unit.splits);
  const std::int64_t length = unit.list != nullptr ? unit.list_count : unit.chunk_count;
  const std::int64_t begin = std::min(length, split * unit.split_length);
  const std::int64_t end = std::min(length, begin + unit.split_length);
  const std::int64_t last_token = (part.row + part.rows - 1) / call.group;
  attend_split<T>(d, call, unit, part, split,
                  entry_walk(call, unit, begin, end, visible_entries(call, unit, last_token)));
}

template <class T, class D>
void join_typed(D d, const attend_call& call, const attend_unit& unit, std::int64_t head) noexcept {
  const std::int64_t rows = std::int64_t{unit.tokens} * call.group;
  for (std::int64_t row = 0; row < rows; ++row) join_row<T>(d, call, unit, head, row);
}

/// Softmax weight that row `row` of a part gives to a block, given the row's lse.
template <class T, class D>
float block_mass(D d, const attend_call& call, const float* q, const rows_view<T>& keys, int count,
                 float lse) noexcept {
  HWY_ALIGN float logits[attend_block];
  dot_rows<T>(d, 1, q, keys, count, {}, logits);
  finish_logits(d, logits, count, call.soft_cap);
  auto sum = hn::Zero(d);
  for (int i = 0; i < count; i += lanes<D>) {
    sum = hn::Add(sum, exp_or_nan(d, hn::Sub(hn::LoadU(d, logits + i), hn::Set(d, lse))));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

template <class T, class D>
float chunk_mass_typed(D d, const attend_call& call, view<const float, 2> lse, std::int64_t index) noexcept {
  const attend_unit& unit = call.units[0];
  HWY_ALIGN float q[attend_max_dim];
  entry_block block;
  float best = 0;
  for (std::int64_t head = 0; head < call.geometry.kv_heads; ++head) {
    for (std::int64_t row = 0; row < std::int64_t{unit.tokens} * call.group; ++row) {
      const std::int64_t token = row / call.group;
      const float base = lse(token, head * call.group + row % call.group);
      if (base == -std::numeric_limits<float>::infinity()) continue;  // attended to nothing
      pack_queries<T>(d, call, unit, head, row, 1, q);
      entry_walk walk(call, unit, index, index + 1, visible_entries(call, unit, token));
      float sum = 0;
      for (walk.fill(block); block.count > 0; walk.fill(block)) {
        sum += block_mass<T>(d, call, q, keys_of<T>(call, block, head), block.count, base);
      }
      if (std::isnan(sum)) return sum;
      best = std::max(best, sum);
    }
  }
  return best;
}

/// Full vectors where both dims are whole pairs of them, else pairs of 16 elements, which every dim is.
template <class F>
auto with_lanes(const kv_geometry& geometry, const F& f) noexcept {
  using wide = hn::CappedTag<float, 16>;
  using narrow = hn::CappedTag<float, 8>;
  constexpr int pair = 2 * lanes<wide>;
  if (geometry.key_dim % pair == 0 && geometry.value_dim % pair == 0) return f(wide());
  return f(narrow());
}

/// Calls f(T{}, D{}) for the store's element type.
template <class F>
auto with_types(const kv_geometry& geometry, const F& f) noexcept {
  return with_lanes(geometry, [&](auto d) HWY_ATTR {
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
