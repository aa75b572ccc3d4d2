// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/attend/elements.cuh>
#include <flashmemory/cuda/attend/entries.cuh>
#include <flashmemory/cuda/attend/logits.cuh>
#include <flashmemory/cuda/attend/output.cuh>
#include <flashmemory/cuda/attend/plan.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

/// Everything a kernel gets, by value.
/// \tparam Query    float, __nv_bfloat16 or __half
/// \tparam Entries  where entries lie, see entries.cuh
/// \tparam Keys     how K is read, see elements.cuh
/// \tparam Values   how V is read
/// \tparam Logits   what happens to a logit, see logits.cuh
/// \tparam Output   what is written, see output.cuh
template <class Query, class Entries, class Keys, class Values, class Logits, class Output>
struct call {
  using query_type = Query;
  using entries_type = Entries;
  using keys_type = Keys;
  using values_type = Values;

  const Query* q = nullptr;  ///< [rows * query_tokens, query heads, key_dim], device, unit last stride
  std::int64_t q_row_stride = 0, q_head_stride = 0;  ///< elements
  Entries entries;
  Keys keys;
  Values values;
  Logits logits;
  Output output;
  attend::work work;
};

namespace detail {

/// The first page of a split, the one behind its last, and how many splits a row has.
struct split_range {
  std::int32_t begin, end, splits;
};

__device__ __forceinline__ split_range range_of(const work& w, std::int32_t entries, std::int32_t split) {
  // A row longer than its plan ends there: a tile whose last split never comes would leave its counter behind.
  const std::int32_t pages =
      min((entries + w.entries_per_page - 1) / w.entries_per_page, w.splits * w.pages_per_split);
  split_range range;
  range.splits = pages == 0 ? 1 : (pages + w.pages_per_split - 1) / w.pages_per_split;
  range.begin = split * w.pages_per_split;
  range.end = min(range.begin + w.pages_per_split, pages);
  return range;
}

/// A query row and what its logits need; the entry is filled in one after another.
template <class Call>
__device__ __forceinline__ logit_place place_of(const Call& call,
                                                const typename Call::entries_type::list& list,
                                                std::int32_t row, std::int32_t token, std::int32_t head,
                                                std::int32_t visible) {
  return {row, token, head, 0, 0, call.entries.position(list, max(min(visible, list.entries) - 1, 0))};
}

/// The logit of an entry, of which only the list's own are asked for a position.
template <class Call>
__device__ __forceinline__ float logit_of(const Call& call, const typename Call::entries_type::list& list,
                                          logit_place place, std::int32_t entry, float dot) {
  place.entry = entry;
  place.position = call.entries.position(list, min(entry, list.entries - 1));
  return call.logits(dot, place);
}

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
