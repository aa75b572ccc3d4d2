// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/attend.hpp>
#include <limits>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Attention kernels for engines that instantiate their own: host side, pure functions. What follows is device code in
/// the .cuh files of this folder. A page is where consecutive entries lie together: a chunk of a store, or a page of an
/// engine's own cache.
namespace attend {

/// Most parts that a row is cut into: what the block that joins them reads stays short.
inline constexpr std::int64_t max_splits = 64;

/// Most blocks whose splits of a tile are joined through their shared memory. Larger clusters do not all find room at
/// once (of four blocks, 62 instead of 66 on an H100) or crowd on half of the multiprocessors (of sixteen).
inline constexpr std::int32_t max_cluster = 2;

/// Query rows of one KV head that a block of the tensor-core kernel works on: the M of its MMA.
inline constexpr int tile_rows = 16;

/// Entries that one pipeline stage of the tensor-core kernel holds.
inline constexpr int stage_entries = 64;

/// Largest key_dim and value_dim.
inline constexpr std::int32_t max_dim = 256;

/// What a plan is made for: capacities.
struct shape {
  std::int64_t rows = 0;               ///< sequences of a step, at most; times query_tokens at most 65535
  std::int64_t max_pages = 0;          ///< of a row, at most
  std::int32_t entries_per_page = 64;  ///< below 2^31 / max_pages
  std::int32_t query_tokens =
      1;  ///< of every row, [1, 8]; the last one sees all entries, the one before one less
  std::int32_t query_heads = 0;  ///< a multiple of kv_heads, at most 65535
  std::int32_t kv_heads = 0;
  std::int32_t key_dim = 0,
               value_dim = 0;  ///< elements, at most max_dim; with tensor cores alike and 64, 128 or 256

  /// Query heads that share a KV head.
  constexpr std::int32_t group() const noexcept { return query_heads / kv_heads; }
};

/// How work of a shape is cut. Results are bit for bit the same for the same plan and the same entries.
struct plan {
  attend::shape shape;
  bool tensor_cores = false;         ///< for launch_tensor_core(), else for launch_portable()
  std::int32_t num_sms = 0;          ///< multiprocessors that the tensor-core kernel occupies
  std::int32_t pages_per_split = 0;  ///< consecutive pages that one block works through
  std::int32_t splits = 0;           ///< parts that a row of max_pages pages falls into
  std::int32_t head_tiles = 0;       ///< blocks that share a KV head's query rows, tile_rows each
};

/// Chunks, or pages, that one block should work through, so that blocks fill the device evenly and their fixed costs do
/// not outweigh that. Its constants come from bench rows cuda/attend_gqa.
/// \param tiles          blocks of a step if nothing is cut
/// \param max_chunks     of a row
/// \param entries_per_chunk  of each
/// \param num_sms        multiprocessors of the device
/// \param blocks_per_sm  blocks that a multiprocessor holds
inline std::int32_t chunks_per_split(std::int64_t tiles, std::int64_t max_chunks,
                                     std::int32_t entries_per_chunk, std::int32_t num_sms,
                                     std::int32_t blocks_per_sm) noexcept {
  if (max_chunks <= 1 || tiles < 1 || tiles > attend_counters)
    return static_cast<std::int32_t>(std::max<std::int64_t>(max_chunks, 1));
  std::int64_t best = max_chunks;
  double best_cost = std::numeric_limits<double>::max();
  for (std::int64_t splits = 1; splits <= std::min<std::int64_t>(max_chunks, max_splits); ++splits) {
    const std::int64_t chunks = (max_chunks + splits - 1) / splits;
    const std::int64_t blocks = tiles * ((max_chunks + chunks - 1) / chunks);
    const std::int64_t per_sm = (blocks + num_sms - 1) / num_sms;
    // In entries that a multiprocessor reads of its share of the memory's bandwidth: what is read, where a tensor-core
    // block that has a multiprocessor to itself takes more than that share if others leave it some; an item's start
    // and end, of which blocks side by side hide each other's; the join of the splits.
    const double share = double(tiles * max_chunks) / num_sms, most = double(per_sm * chunks);
    const double read = entries_per_chunk * (per_sm == 1 && blocks_per_sm == 2 ? std::max(0.84 * most, share)
                                             : per_sm < blocks_per_sm          ? 1.07 * most
                                                                               : most);
    const double join = splits == 1 ? 0.0 : splits <= max_cluster ? 64.0 : 256.0;
    const double ends = join * double(std::max<std::int64_t>(per_sm, blocks_per_sm)) / blocks_per_sm;
    const double cost = read + ends + 2.0 * double(splits);
    if (cost < best_cost) {
      best = chunks;
      best_cost = cost;
    }
  }
  return static_cast<std::int32_t>(best);
}

/// Where partial results of rows that are cut into several splits meet, if no cluster joins them. A tile is what one
/// block accumulates: `rows_per_tile` query rows.
struct partial_layout {
  std::int64_t tiles = 0;             ///< of a step; at most attend_counters if bytes is not 0
  std::int64_t floats_per_split = 0;  ///< maxima [rows], sums [rows], padding, values [rows, value_dim]
  std::int32_t rows_per_tile = 0;
  std::int32_t head_floats = 0;  ///< before the values
  std::size_t bytes = 0;         ///< in all; 0 if nothing meets in memory
};

/// The layout of a plan's partial results; `bytes` is the scratch that its calls need.
inline partial_layout layout_of(const plan& p) noexcept {
  const attend::shape& s = p.shape;
  partial_layout layout;
  layout.rows_per_tile = p.tensor_cores ? tile_rows : 1;
  layout.tiles =
      p.tensor_cores ? s.rows * s.kv_heads * p.head_tiles : s.rows * s.query_tokens * s.query_heads;
  // A multiple of four, and so are the maxima and sums together: values are read four at a time.
  const std::int64_t head = (2 * std::int64_t{layout.rows_per_tile} + 3) / 4 * 4;
  layout.head_floats = static_cast<std::int32_t>(head);
  layout.floats_per_split = (head + std::int64_t{layout.rows_per_tile} * s.value_dim + 3) / 4 * 4;
  if (p.splits > (p.tensor_cores ? max_cluster : 1))
    layout.bytes = static_cast<std::size_t>(layout.tiles * p.splits * layout.floats_per_split * 4);
  return layout;
}

/// Cuts the work so that a step with all rows at max_pages fills the device.
/// \param s             a shape within its bounds; nothing is checked
/// \param num_sms       multiprocessors to fill
/// \param tensor_cores  for launch_tensor_core(), else for launch_portable()
inline plan plan_for(const shape& s, std::int32_t num_sms, bool tensor_cores) noexcept {
  plan p;
  p.shape = s;
  p.tensor_cores = tensor_cores;
  p.num_sms = num_sms;
  p.head_tiles = (s.group() * s.query_tokens + tile_rows - 1) / tile_rows;
  const std::int32_t blocks_per_sm = !tensor_cores ? 8 : s.key_dim == 256 ? 1 : 2;
  p.pages_per_split =
      chunks_per_split(layout_of(p).tiles, s.max_pages, s.entries_per_page, num_sms, blocks_per_sm);
  p.splits = static_cast<std::int32_t>((s.max_pages + p.pages_per_split - 1) / p.pages_per_split);
  return p;
}

/// What the kernels get of a plan, by value.
struct work {
  std::int32_t num_rows = 0, query_tokens = 0, query_heads = 0, group = 0;
  std::int32_t key_dim = 0, value_dim = 0, entries_per_page = 0;
  std::int32_t pages_per_split = 0, splits = 0, head_tiles = 0, num_sms = 0;
  std::int32_t cluster = 1;  ///< blocks that join a tile's splits: all splits, or 1 = through memory
  partial_layout layout;
  float* partials = nullptr;          ///< layout.bytes of device memory, 16-byte aligned, whatever is in it
  std::uint32_t* counters = nullptr;  ///< [attend_counters], device, as attend_options::counters
};

/// The work of one call.
/// \param p         a plan
/// \param num_rows  of this step, at most p.shape.rows
/// \param scratch   device, layout_of(p).bytes, 16-byte aligned; may be null if that is 0
/// \param counters  device, see work::counters; may be null if layout_of(p).bytes is 0
inline work work_of(const plan& p, std::int64_t num_rows, void* scratch, std::uint32_t* counters) noexcept {
  const attend::shape& s = p.shape;
  work w;
  w.num_rows = static_cast<std::int32_t>(num_rows);
  w.query_tokens = s.query_tokens;
  w.query_heads = s.query_heads;
  w.group = s.group();
  w.key_dim = s.key_dim;
  w.value_dim = s.value_dim;
  w.entries_per_page = s.entries_per_page;
  w.pages_per_split = p.pages_per_split;
  w.splits = p.splits;
  w.head_tiles = p.head_tiles;
  w.num_sms = p.num_sms;
  w.cluster = p.tensor_cores && p.splits <= max_cluster ? p.splits : 1;
  w.layout = layout_of(p);
  w.partials = static_cast<float*>(scratch);
  w.counters = counters;
  return w;
}

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
