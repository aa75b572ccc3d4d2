// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/attend/plan.hpp>
#include <flashmemory/cuda/prompt_attend.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

/// Entries that are multiplied at once: softmax maxima move on from one such block to the next, and a block never
/// reaches over the end of its page.
inline constexpr int prompt_block = 64;

/// Query rows of one KV head that a block of threads works on with tensor cores.
inline constexpr int prompt_tile = 128;

/// Most ranges of pages that a plan cuts the history into.
inline constexpr std::int32_t prompt_max_ranges = 64;

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
  std::int64_t tokens = 0;  ///< of all items: rows of q, of out and of a range's states
  bool first = true, last = true;
  float* state = nullptr;             ///< [ranges, tokens, query_heads, prompt_state_head + value_dim], device, or null
  std::uint32_t* counters = nullptr;  ///< [attend_counters], device; zeros before and after
};

/// Pages of a range that let `units` units of work fill a device; all pages if there is no need.
/// \param units   units of work if nothing is cut
/// \param pages   of a sequence
inline std::int64_t prompt_pages_per_range(std::int64_t units, std::int64_t pages, std::int32_t entries_per_page,
                                           std::int32_t num_sms) noexcept {
  // A range that is shorter than this spends its time on what comes before and after it.
  const std::int64_t least = std::max<std::int64_t>(2048 / entries_per_page, 1);
  if (units < 1 || pages <= least) return std::max<std::int64_t>(pages, 1);
  std::int64_t best = pages;
  double best_cost = double((units + num_sms - 1) / num_sms) * double(pages);
  for (std::int64_t ranges = 2; ranges <= prompt_max_ranges; ++ranges) {
    const std::int64_t each = (pages + ranges - 1) / ranges;
    if (each < least || units * ranges > attend_counters / 2) break;
    const double waves = double((units * ranges + num_sms - 1) / num_sms);
    const double cost = waves * double(each + least / 8);
    if (cost < 0.9 * best_cost) {  // what is cut has to be joined, and its states take memory
      best = each;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
