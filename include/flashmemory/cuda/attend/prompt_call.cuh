// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/attend/logits.cuh>
#include <flashmemory/cuda/attend/output.cuh>
#include <flashmemory/cuda/attend/prompt_plan.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

// Where the entries of prompts lie. Such a policy is a plain struct, passed to kernels by value, with
//
//   prompt_row row(i)          item i
//   keys(page, h), values(page, h)    the K and V of entry 0 of KV head h in one of prompt_row::chunks

/// The items of prompt_attend(): chunks of a store.
struct prompt_chunks {
  const prompt_row* rows = nullptr;
  std::int64_t row_stride = 1;                              ///< elements
  std::int64_t key_offset = 0, value_offset = 0;            ///< bytes, of head 0 of the layer in a chunk
  std::int64_t key_block_bytes = 0, value_block_bytes = 0;  ///< of one head

  __device__ __forceinline__ prompt_row row(std::int32_t i) const { return rows[i * row_stride]; }
  __device__ __forceinline__ const std::byte* keys(const std::byte* page, std::int32_t head) const {
    return page + key_offset + head * key_block_bytes;
  }
  __device__ __forceinline__ const std::byte* values(const std::byte* page, std::int32_t head) const {
    return page + value_offset + head * value_block_bytes;
  }
};

/// Everything a kernel for prompts gets, by value.
/// \tparam Query    float, __nv_bfloat16 or __half, of q, K and V
/// \tparam Entries  where entries lie
/// \tparam Logits   what happens to a logit, see logits.cuh
/// \tparam Output   what is written, see output.cuh
template <class Query, class Entries, class Logits, class Output>
struct prompt_call {
  using query_type = Query;
  using entries_type = Entries;
  using logits_type = Logits;
  using output_type = Output;

  const Query* q = nullptr;  ///< [tokens, query heads, key_dim], device, unit last stride
  std::int64_t q_row_stride = 0, q_head_stride = 0;  ///< elements
  Entries entries;
  Logits logits;
  Output output;
  prompt_work work;
};

namespace detail {

/// A unit of work: some query rows of one KV head over one range of pages.
struct prompt_unit {
  std::int32_t item, kv_head;
  std::int32_t first_row, rows;  // of the item's rows of this KV head: token * group + head
  std::int32_t range, ranges;    // and how many the rows have in all
  std::int32_t begin, end;       // pages of the item's list
  std::int32_t visible;          // entries that the last row sees
  std::int32_t entries, position, tokens;
  std::int64_t first_token;
  std::int64_t tile;    // number of these rows among all rows of the call
  std::int32_t blocks;  // of entries
  bool there;           // false = no more units

  /// How many entries row r sees.
  __device__ __forceinline__ std::int32_t sees(std::int32_t r, std::int32_t group) const {
    return r < rows ? min(entries, position + (first_row + r) / group + 1) : 0;
  }
};

/// The first of `count` ascending ids that is not below `bound`: all lanes of a warp.
__device__ __forceinline__ std::int32_t first_id_from(const chunk_id* ids, std::int32_t count,
                                                      std::int32_t bound) {
  const std::int32_t lane = threadIdx.x % 32;
  if (count <= 0) return 0;
  // Most lists have no gaps.
  const std::int32_t lowest = ids[0], guess = min(bound - lowest, count);
  if (guess <= 0) return 0;
  if (ids[guess - 1] == lowest + guess - 1) return guess;
  std::int32_t low = 0, n = count;
  while (n > 0) {
    const std::int32_t step = (n + 31) / 32, at = low + lane * step;
    const std::int32_t below = __popc(__ballot_sync(~0u, at < low + n && ids[at] < bound));
    if (step == 1) return low + below;
    if (below == 0) return low;
    const std::int32_t next = low + (below - 1) * step + 1;
    n = min(step - 1, low + n - next);
    low = next;
  }
  return low;
}

/// Finds the units of a call, for ascending numbers: all lanes of a warp.
template <class Call>
class prompt_units {
 public:
  __device__ explicit prompt_units(const Call& call) : call_(call) {}

  /// The unit of this number.
  __device__ prompt_unit at(std::int64_t number) {
    const prompt_work& w = call_.work;
    const std::int32_t lane = threadIdx.x % 32;
    prompt_unit u;
    for (;; window_ += 32) {
      if (window_ >= w.num_items) {
        u.there = false;
        u.blocks = 0;
        return u;
      }
      std::int64_t units = 0, tiles = 0;
      if (window_ + lane < w.num_items) {
        const prompt_row row = call_.entries.row(window_ + lane);
        tiles = tiles_of(row);
        units = tiles * ranges_of(row);
      }
      std::int64_t to = units, tiles_to = tiles;
      for (int step = 1; step < 32; step *= 2) {
        const std::int64_t more = __shfl_up_sync(~0u, to, step);
        const std::int64_t more_tiles = __shfl_up_sync(~0u, tiles_to, step);
        if (lane >= step) {
          to += more;
          tiles_to += more_tiles;
        }
      }
      const std::uint32_t found = __ballot_sync(~0u, number < units_before_ + to);
      if (found != 0) {
        const int who = __ffs(static_cast<int>(found)) - 1;
        u.item = window_ + who;
        u.tile = tiles_before_ + __shfl_sync(~0u, tiles_to - tiles, who);
        number -= units_before_ + __shfl_sync(~0u, to - units, who);
        break;
      }
      units_before_ += __shfl_sync(~0u, to, 31);
      tiles_before_ += __shfl_sync(~0u, tiles_to, 31);
    }
    const prompt_row row = call_.entries.row(u.item);
    const std::int32_t heads = w.query_heads / w.group, ranges = ranges_of(row);
    const std::int32_t row_tiles = std::int32_t(tiles_of(row) / heads);
    u.kv_head = std::int32_t(number % heads);
    u.range = std::int32_t(number / heads % ranges);
    // Those that see most first.
    const std::int32_t tile = row_tiles - 1 - std::int32_t(number / heads / ranges);
    u.tile += std::int64_t(tile) * heads + u.kv_head;
    u.first_row = tile * w.tile_rows;
    u.rows = std::int32_t(min(std::int64_t(w.tile_rows), std::int64_t(row.tokens) * w.group - u.first_row));
    u.entries = std::int32_t(row.entries);
    u.position = std::int32_t(row.position);
    u.tokens = row.tokens;
    u.first_token = row.first_token;
    u.visible = u.sees(u.rows - 1, w.group);
    const std::int32_t pages = (u.visible + w.entries_per_page - 1) / w.entries_per_page;
    u.ranges = min(w.ranges, max(1, (pages + w.pages_per_range - 1) / w.pages_per_range));
    u.there = true;
    u.blocks = 0;
    u.begin = u.end = 0;
    if (u.range >= u.ranges) return u;
    u.end = first_id_from(row.ids, std::int32_t(row.count),
                          u.range + 1 < u.ranges ? (u.range + 1) * w.pages_per_range : pages);
    if (u.range > 0) u.begin = first_id_from(row.ids, u.end, u.range * w.pages_per_range);
    if (u.begin < u.end) {
      const std::int32_t last = u.visible - row.ids[u.end - 1] * w.entries_per_page;
      u.blocks = (u.end - u.begin - 1) * ((w.entries_per_page + prompt_block - 1) / prompt_block) +
                 (min(last, w.entries_per_page) + prompt_block - 1) / prompt_block;
    }
    return u;
  }

 private:
  __device__ std::int64_t tiles_of(const prompt_row& row) const {
    const prompt_work& w = call_.work;
    return (std::int64_t(row.tokens) * w.group + w.tile_rows - 1) / w.tile_rows * (w.query_heads / w.group);
  }
  __device__ std::int32_t ranges_of(const prompt_row& row) const {
    const prompt_work& w = call_.work;
    const std::int64_t seen = min(row.entries, row.position + row.tokens);
    const std::int64_t pages = (seen + w.entries_per_page - 1) / w.entries_per_page;
    return std::int32_t(min(std::int64_t(w.ranges),
                            max(std::int64_t(1), (pages + w.pages_per_range - 1) / w.pages_per_range)));
  }

  const Call& call_;
  std::int32_t window_ = 0;
  std::int64_t units_before_ = 0, tiles_before_ = 0;
};

}  // namespace detail
}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
