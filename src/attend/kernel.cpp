// SPDX-License-Identifier: MIT
#include "attend/call.hpp"

// The kernels keep arrays of vectors, which vectors of unknown length cannot form; such machines use NEON.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attend/kernel.cpp"
#include <hwy/foreach_target.h>
//
#include "attend/task-inl.hpp"

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
  const std::int64_t local = index - unit.first_task;
  const std::int64_t split = local % unit.splits;
  const std::int64_t group = local / unit.splits % call.row_groups(unit);
  const std::int64_t head = local / unit.splits / call.row_groups(unit);
  const std::int64_t first = group * attend_row_group;
  const std::int64_t all_rows = std::int64_t{unit.tokens} * call.group;
  const int rows = int(std::min<std::int64_t>(attend_row_group, all_rows - first));

  const std::int64_t length = unit.list != nullptr ? unit.list_count : unit.chunk_count;
  const std::int64_t begin = std::min(length, split * unit.split_length);
  const std::int64_t end = std::min(length, begin + unit.split_length);
  const std::int64_t last_token = (first + rows - 1) / call.group;
  const std::int64_t partial = call.partial_row(unit, head, split, first);
  attend_split<T>(d, call, unit, head, first, rows,
                  entry_walk<T>(call, unit, head, begin, end, visible_entries(call, unit, last_token)),
                  call.states + partial, call.sums + partial * call.geometry.value_dim);

  // Whoever finishes last sees what the others wrote: release above, acquire here.
  std::atomic<std::int32_t>& left = call.unfinished[unit.first_group + head * call.row_groups(unit) + group];
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  for (int r = 0; r < rows; ++r) join_row<T>(d, call, unit, head, first + r);
}

template <class T, class D>
float chunk_mass_typed(D d, const attend_call& call, view<const float, 2> lse, std::int64_t index) noexcept {
  const attend_unit& unit = call.units[0];
  const int key_dim = call.geometry.key_dim;
  HWY_ALIGN float q[attend_row_group * attend_max_dim];
  HWY_ALIGN float logits[tile_rows * attend_block];
  float sums[attend_row_group];
  entry_block<T> block;
  float best = 0;
  for (std::int64_t head = 0; head < call.geometry.kv_heads; ++head) {
    const std::int64_t all_rows = std::int64_t{unit.tokens} * call.group;
    for (std::int64_t first = 0; first < all_rows; first += attend_row_group) {
      const int rows = int(std::min<std::int64_t>(attend_row_group, all_rows - first));
      pack_queries<T>(d, call, unit, head, first, rows, q);
      std::fill_n(sums, rows, 0.0f);
      entry_walk<T> walk(call, unit, head, index, index + 1,
                         visible_entries(call, unit, (first + rows - 1) / call.group));
      for (walk.fill(block); block.count > 0; walk.fill(block)) {
        for (int row = 0; row < rows; ++row) {
          const std::int64_t token = (first + row) / call.group;
          const int count = block.before(visible_entries(call, unit, token));
          const float base = lse(token, head * call.group + (first + row) % call.group);
          if (count == 0 || base == -std::numeric_limits<float>::infinity()) continue;
          dot_rows<T>(d, 1, q + row * key_dim, key_dim, block.keys, count, nullptr, 0, logits);
          finish_logits(d, logits, count, call.soft_cap);
          auto sum = hn::Zero(d);
          for (int i = 0; i < count; i += lanes<D>) {
            sum = hn::Add(sum, exp_or_nan(d, hn::Sub(hn::LoadU(d, logits + i), hn::Set(d, base))));
          }
          sums[row] += hn::GetLane(hn::SumOfLanes(d, sum));
        }
      }
      for (int row = 0; row < rows; ++row) {
        if (std::isnan(sums[row]) || sums[row] > best) best = sums[row];
        if (std::isnan(best)) return best;
      }
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

struct task_of {
  const attend_call& call;
  std::int64_t index;
  template <class D>
  void operator()(D d) const noexcept {
    switch (call.geometry.type) {
      case dtype::f32:
        return run_typed<float>(d, call, index);
      case dtype::bf16:
        return run_typed<bfloat16>(d, call, index);
      case dtype::f16:
        return run_typed<float16>(d, call, index);
    }
  }
};

struct mass_of {
  const attend_call& call;
  view<const float, 2> lse;
  std::int64_t index;
  template <class D>
  float operator()(D d) const noexcept {
    switch (call.geometry.type) {
      case dtype::f32:
        return chunk_mass_typed<float>(d, call, lse, index);
      case dtype::bf16:
        return chunk_mass_typed<bfloat16>(d, call, lse, index);
      case dtype::f16:
        return chunk_mass_typed<float16>(d, call, lse, index);
    }
    return 0;
  }
};

void run_task(const attend_call& call, std::int64_t index) {
  with_lanes(call.geometry, task_of{call, index});
}

float chunk_mass(const attend_call& call, view<const float, 2> lse, std::int64_t index) {
  return with_lanes(call.geometry, mass_of{call, lse, index});
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
HWY_EXPORT(chunk_mass);

void run_attend_task(const attend_call& call, std::int64_t index) noexcept {
  HWY_DYNAMIC_DISPATCH(run_task)(call, index);
}

float attend_chunk_mass(const attend_call& call, view<const float, 2> lse, std::int64_t index) noexcept {
  return HWY_DYNAMIC_DISPATCH(chunk_mass)(call, lse, index);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
#endif  // HWY_ONCE
