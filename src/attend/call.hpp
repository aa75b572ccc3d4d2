// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/sparse_attend.hpp>
#include <flashmemory/cpu/attend/blocks.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Splits of one sequence, and the fewest entries of one. Splits depend on the resident list alone, so that
/// results do not depend on threads.
inline constexpr std::int64_t attend_max_splits = 64;
inline constexpr std::int64_t attend_split_entries = 256;

/// Query tokens that read the same entries: an item, or one row of it when every row has a list of its own.
/// Per KV head it has tokens x group rows, row = token * group + head within the group.
struct attend_unit {
  const resident_chunk* chunks = nullptr;
  std::int64_t chunk_count = 0;
  const std::int32_t* list = nullptr;  ///< level-2 entries; null = all
  std::int64_t list_count = 0;
  std::int64_t list_stride = 1;

  std::int64_t position = 0;
  std::int32_t tokens = 0;
  std::int64_t first_token = 0;  ///< in the packed tensors
  std::int64_t first_row = 0;    ///< query tokens of the units before it
  bool layer_only = false;       ///< chunks' data is that of the call's layer

  std::int64_t splits = 1;
  std::int64_t split_length = 1;  ///< resident chunks, or places in the list
  std::int64_t first_task = 0;
};

/// Everything the tasks of one call need. Task order: unit, part, split.
struct attend_call {
  kv_geometry geometry;
  std::int32_t layer = 0;
  std::int32_t query_heads = 0;
  std::int32_t group = 1;  ///< query heads per KV head
  const_tensor<3> q;
  tensor<3> out;
  view<const float, 1> sinks;
  view<float, 2> lse;
  float scale = 1;
  float soft_cap = 0;

  attend_unit* units = nullptr;
  std::int64_t unit_count = 0;
  std::int64_t max_splits = 1;

  cpu::attend::softmax_state* states = nullptr;  ///< per unit, split, head and row
  float* sums = nullptr;  ///< [value_dim] weighted values likewise, in the kernel's own lane order

  /// Neighbouring heads lie side by side in a chunk: a task takes as many as it can, to read memory in runs.
  std::int64_t parts(const attend_unit& unit) const noexcept {
    const std::int64_t rows = std::int64_t{unit.tokens} * group;
    if (rows > cpu::attend::most_rows) {
      return geometry.kv_heads * ((rows + cpu::attend::most_rows - 1) / cpu::attend::most_rows);
    }
    const std::int64_t heads = cpu::attend::most_rows / rows;
    return (geometry.kv_heads + heads - 1) / heads;
  }

  cpu::attend::query_part part(const attend_unit& unit, std::int64_t index) const noexcept {
    const std::int64_t rows = std::int64_t{unit.tokens} * group;
    cpu::attend::query_part p;
    if (rows > cpu::attend::most_rows) {
      const std::int64_t per_head = (rows + cpu::attend::most_rows - 1) / cpu::attend::most_rows;
      p.head = index / per_head;
      p.row = index % per_head * cpu::attend::most_rows;
      p.rows = static_cast<std::int32_t>(std::min<std::int64_t>(cpu::attend::most_rows, rows - p.row));
    } else {
      const std::int64_t heads = cpu::attend::most_rows / rows;
      p.head = index * heads;
      p.heads = static_cast<std::int32_t>(std::min(heads, geometry.kv_heads - p.head));
      p.rows = static_cast<std::int32_t>(rows);
    }
    return p;
  }

  /// Place of one row's partial result of one split.
  std::int64_t partial(const attend_unit& unit, std::int64_t split, std::int64_t head,
                       std::int64_t row) const noexcept {
    const std::int64_t rows = std::int64_t{unit.tokens} * group;
    return unit.first_row * query_heads * max_splits + (split * geometry.kv_heads + head) * rows + row;
  }
};

/// Query rows of one KV head that go through a list of chunks together, and how far this call takes them.
struct prompt_block {
  const attend_unit* unit = nullptr;
  std::int64_t head = 0;
  std::int64_t first = 0;  ///< row, as query_part::row
  std::int32_t rows = 0;   ///< at most cpu::attend::prompt_rows
  bool begins = true;      ///< nothing has been added to `state` yet
  bool ends = true;        ///< write what has been added up
};

/// Position of resident chunk `id` in the ascending list, or -1.
inline std::int64_t find_chunk(const resident_chunk* chunks, std::int64_t count, std::int64_t id) noexcept {
  if (id < count && chunks[id].id == id) return id;  // everything up to it is resident
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (chunks[middle].id < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < count && chunks[low].id == id ? low : -1;
}

/// Runs task `index`: one part of one unit over one split.
void run_attend_task(const attend_call& call, std::int64_t index) noexcept;

/// Joins the splits of all rows of a unit and KV head, in their order, and writes output and lse.
void join_attend_splits(const attend_call& call, const attend_unit& unit, std::int64_t head) noexcept;

/// Adds the unit's chunks to the softmax of a block.
/// \param state  [cpu::attend::prompt_state_floats()] kept from call to call, 64-byte aligned
/// \param work   [cpu::attend::prompt_work_floats()], likewise
void run_prompt_block(const attend_call& call, const prompt_block& block, float* state, float* work) noexcept;

/// The largest attention mass that a row of the call's only unit gives to resident chunk `index`.
float attend_chunk_mass(const attend_call& call, view<const float, 2> lse, std::int64_t index) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
