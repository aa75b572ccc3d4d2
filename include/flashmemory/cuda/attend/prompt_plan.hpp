// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/prompt_attend.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

/// Entries that are multiplied at once: softmax maxima move on from one such block to the next, and a block never
/// reaches over the end of its page.
inline constexpr int prompt_block = 64;

/// Query rows of one KV head that a block of threads works on, with tensor cores and without.
inline constexpr int prompt_tile = 128, prompt_portable_tile = 4;

/// Most ranges of pages that a plan cuts the history into.
inline constexpr std::int32_t prompt_max_ranges = 64;

/// Most bytes of states that a plan asks for so as to have more ranges.
inline constexpr std::int64_t prompt_max_range_bytes = std::int64_t{64} << 20;

/// Counters before those of tiles: the next unit of work, and blocks that have ended.
inline constexpr std::int32_t prompt_first_counter = 2;

/// Floats of a row's state before its values: its maximum, then four parts of its sum.
inline constexpr std::int64_t prompt_state_head = 8;

/// What the kernels get of a plan, by value.
struct prompt_work {
  std::int32_t num_items = 0, query_heads = 0, group = 0;
  std::int32_t key_dim = 0, value_dim = 0, entries_per_page = 0;
  std::int32_t pages_per_range = 0;  ///< ids of one range
  std::int32_t ranges = 1;           ///< of a sequence, at most
  std::int32_t tile_rows = 0;        ///< query rows of one KV head that a unit of work has
  std::int32_t num_sms = 0;
  std::int64_t tokens = 0;  ///< rows of a range's states
  bool first = true, last = true;
  float* state = nullptr;  ///< [ranges, tokens, query_heads, prompt_state_head + value_dim], device, or null
  std::uint32_t* counters = nullptr;  ///< [attend_counters], device; zeros before and after
};

/// Tiles of a call, at most.
inline std::int64_t prompt_tiles(const prompt_shape& s, bool tensor_cores) noexcept {
  const std::int64_t rows = s.max_tokens * (s.query_heads / s.geometry.kv_heads);
  const std::int64_t each = tensor_cores ? prompt_tile : prompt_portable_tile;
  return (rows / each + std::min(s.max_items, rows)) * s.geometry.kv_heads;
}

/// Cuts the work: a pure function of shape and device.
inline prompt_plan prompt_plan_for(const prompt_shape& s, std::int32_t num_sms, bool tensor_cores) noexcept {
  prompt_plan p;
  p.shape = s;
  p.num_sms = num_sms;
  p.tensor_cores = tensor_cores;
  p.chunks_per_range = s.max_chunks;
  p.ranges = 1;
  // Shorter ranges spend their time on what comes before and after them.
  const std::int64_t least = std::max<std::int64_t>(2048 / s.geometry.entries_per_chunk, 1);
  const std::int64_t rows = s.max_tokens * (s.query_heads / s.geometry.kv_heads);
  const std::int64_t each_tile = tensor_cores ? prompt_tile : prompt_portable_tile;
  const std::int64_t tiles = (rows + each_tile - 1) / each_tile * s.geometry.kv_heads;
  if (prompt_tiles(s, tensor_cores) + prompt_first_counter > attend_counters) return p;
  const std::int64_t state = s.max_tokens * s.query_heads * (prompt_state_head + s.geometry.value_dim) * 4;
  double best = double((tiles + num_sms - 1) / num_sms) * double(s.max_chunks);
  for (std::int32_t ranges = 2; ranges <= prompt_max_ranges; ++ranges) {
    const std::int64_t each = (s.max_chunks + ranges - 1) / ranges;
    if (each < least || ranges * state > prompt_max_range_bytes) break;
    const double cost = double((tiles * ranges + num_sms - 1) / num_sms) * double(each + least / 8);
    if (cost < 0.9 * best) {  // ranges have to be joined, and their states take memory
      best = cost;
      p.chunks_per_range = each;
      p.ranges = static_cast<std::int32_t>((s.max_chunks + each - 1) / each);
    }
  }
  return p;
}

/// Bytes of the states of a plan's calls.
inline std::size_t prompt_states_of(const prompt_plan& p) noexcept {
  const prompt_shape& s = p.shape;
  return static_cast<std::size_t>(p.ranges * s.max_tokens * s.query_heads *
                                  (prompt_state_head + s.geometry.value_dim) * 4);
}

/// The work of one call.
/// \param p          a plan
/// \param num_items  of this call, at most p.shape.max_items
/// \param first,last what part of its lists the call has
/// \param state      device, prompt_states_of(p), 16-byte aligned; may be null for a call that is first and last with one range
/// \param counters   device, see prompt_work::counters
inline prompt_work prompt_work_of(const prompt_plan& p, std::int64_t num_items, bool first, bool last,
                                  void* state, std::uint32_t* counters) noexcept {
  const prompt_shape& s = p.shape;
  prompt_work w;
  w.num_items = static_cast<std::int32_t>(num_items);
  w.query_heads = s.query_heads;
  w.group = s.query_heads / s.geometry.kv_heads;
  w.key_dim = s.geometry.key_dim;
  w.value_dim = s.geometry.value_dim;
  w.entries_per_page = s.geometry.entries_per_chunk;
  w.pages_per_range = static_cast<std::int32_t>(p.chunks_per_range);
  w.ranges = p.ranges;
  w.tile_rows = p.tensor_cores ? prompt_tile : prompt_portable_tile;
  w.num_sms = p.num_sms;
  w.tokens = s.max_tokens;
  w.first = first;
  w.last = last;
  w.state = static_cast<float*>(state);
  w.counters = counters;
  return w;
}

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
