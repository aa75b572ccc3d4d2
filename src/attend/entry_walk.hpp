// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "src/attend/call.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Hands out the entries of one split, those before `limit` only.
class entry_walk {
 public:
  entry_walk(const attend_call& call, const attend_unit& unit, std::int64_t begin, std::int64_t end,
             std::int64_t limit) noexcept
      : unit_(unit), limit_(limit), per_chunk_(call.geometry.entries_per_chunk), at_(begin), end_(end) {
    const chunk_layout layout(call.geometry);
    const std::int32_t layer = unit.layer_only ? 0 : call.layer;
    key_offset_ = layout.key_offset(layer, 0);
    value_offset_ = layout.value_offset(layer, 0);
    key_bytes_ = std::size_t(call.geometry.key_dim) * size_of(call.geometry.type);
    value_bytes_ = std::size_t(call.geometry.value_dim) * size_of(call.geometry.type);
  }

  void fill(cpu::attend::entry_block& block) noexcept {
    block.count = 0;
    if (unit_.list != nullptr) {
      fill_from_list(block);
      return;
    }
    for (; at_ < end_; ++at_, in_chunk_ = 0) {
      const resident_chunk& chunk = unit_.chunks[at_];
      const std::int64_t first = chunk.id * per_chunk_;
      const std::int64_t readable = std::min<std::int64_t>(chunk.entries, limit_ - first);
      const std::int64_t stop =
          std::min<std::int64_t>(readable, in_chunk_ + cpu::attend::block_entries - block.count);
      for (; in_chunk_ < stop; ++in_chunk_) add(block, chunk, in_chunk_, first + in_chunk_);
      if (in_chunk_ < readable) return;  // the block is full
    }
  }

 private:
  void add(cpu::attend::entry_block& block, const resident_chunk& chunk, std::int64_t in_chunk,
           std::int64_t entry) const noexcept {
    block.keys[block.count] = chunk.data + key_offset_ + std::size_t(in_chunk) * key_bytes_;
    block.values[block.count] = chunk.data + value_offset_ + std::size_t(in_chunk) * value_bytes_;
    block.position[block.count++] = entry;
  }

  void fill_from_list(cpu::attend::entry_block& block) noexcept {
    for (; at_ < end_ && block.count < cpu::attend::block_entries; ++at_) {
      const std::int64_t entry = unit_.list[at_ * unit_.list_stride];
      if (entry < 0 || entry >= limit_) continue;
      const std::int64_t found = find_chunk(unit_.chunks, unit_.chunk_count, entry / per_chunk_);
      add(block, unit_.chunks[found], entry % per_chunk_, entry);
    }
  }

  const attend_unit& unit_;
  std::int64_t limit_, per_chunk_;
  std::int64_t at_, end_;  ///< resident chunk or place in the list
  std::int64_t in_chunk_ = 0;
  std::size_t key_offset_, value_offset_, key_bytes_, value_bytes_;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
