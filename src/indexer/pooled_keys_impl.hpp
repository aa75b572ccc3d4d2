// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/pooled_keys.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// The configuration with its defaults filled in.
/// \throws argument_error naming the field, or the lane and what of it
FLASHMEMORY_API pooled_keys_config checked(pooled_keys_config config);

/// The query tap of taps_of() that a lane reads.
FLASHMEMORY_API std::int32_t query_tap_of(const indexer_taps& taps, const pooled_keys_lane& lane) noexcept;

/// The query heads of a lane.
FLASHMEMORY_API std::vector<std::int32_t> heads_of(const pooled_keys_config& config,
                                                   const pooled_keys_lane& lane);

/// Log-odds of a mass, finite for every mass in [0, 1].
FLASHMEMORY_API float mass_log_odds(double mass) noexcept;

/// Chunks [begin, end) whose masses are counted; all where nothing would be left.
struct counted_chunks {
  std::int64_t begin = 0, end = 0;
  counted_chunks(const pooled_keys_config& c, std::int64_t chunks) noexcept
      : begin(c.uncounted_sink_chunks), end(chunks - c.uncounted_recent_chunks) {
    if (begin >= end) begin = 0, end = chunks;
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
