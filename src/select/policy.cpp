// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/select/policy.hpp>
#include <limits>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {

namespace {

bool is_limited(const selection_policy& policy) noexcept {
  return policy.mode != selection_mode::everything &&
         (policy.budget_fraction > 0 || policy.max_chunks > 0 || policy.budget_bytes > 0);
}

std::int64_t chunks_in(std::size_t bytes, const kv_geometry& geometry) noexcept {
  const std::size_t chunk = chunk_layout(geometry).chunk_bytes();
  return chunk == 0 ? 0 : static_cast<std::int64_t>(bytes / chunk);
}

/// nearbyint(fraction * n); a double may round up what is near 2^63.
std::int64_t part_of(double fraction, std::int64_t n) noexcept {
  const double part = std::nearbyint(fraction * static_cast<double>(n));
  return part < static_cast<double>(n) ? static_cast<std::int64_t>(part) : n;
}

void require(bool holds, const char* field, const char* rule, double value) {
  if (!holds)
    throw argument_error(status::bad_argument,
                         formatted("selection_policy::{} must be {}, it is {}", field, rule, value));
}

}  // namespace

float log_odds(double probability) noexcept {
  return static_cast<float>(std::log(probability) - std::log1p(-probability));
}

void validate(const selection_policy& policy, const kv_geometry& geometry) {
  // Comparisons are written so that NaN fails them.
  const auto mode = static_cast<std::int32_t>(policy.mode);
  require(mode >= 0 && mode <= static_cast<std::int32_t>(selection_mode::threshold), "mode",
          "a selection_mode", mode);
  require(policy.interval >= 1, "interval", "at least 1", policy.interval);
  require(policy.sink_chunks >= 0, "sink_chunks", "at least 0", policy.sink_chunks);
  require(policy.recent_chunks >= 0, "recent_chunks", "at least 0", policy.recent_chunks);
  require(policy.budget_fraction >= 0 && policy.budget_fraction <= 1, "budget_fraction", "in [0, 1]",
          policy.budget_fraction);
  require(policy.max_chunks >= 0, "max_chunks", "at least 0", static_cast<double>(policy.max_chunks));
  require(policy.min_chunks >= 0, "min_chunks", "at least 0", static_cast<double>(policy.min_chunks));
  require(!std::isnan(policy.threshold), "threshold", "a number", static_cast<double>(policy.threshold));
  require(policy.hysteresis >= 0 && std::isfinite(policy.hysteresis), "hysteresis", "finite and at least 0",
          static_cast<double>(policy.hysteresis));
  require(policy.hold >= 0 && policy.hold < 1, "hold", "in [0, 1)", static_cast<double>(policy.hold));

  const fallback_policy& fallback = policy.fallback;
  require(fallback.max_dropped >= 0 && fallback.max_dropped <= 1, "fallback.max_dropped", "in [0, 1]",
          static_cast<double>(fallback.max_dropped));
  require(fallback.min_attention_mass >= 0 && fallback.min_attention_mass <= 1, "fallback.min_attention_mass",
          "in [0, 1]", static_cast<double>(fallback.min_attention_mass));
  require(fallback.widen_factor >= 1 && std::isfinite(fallback.widen_factor), "fallback.widen_factor",
          "finite and at least 1", static_cast<double>(fallback.widen_factor));
  require(fallback.patience >= 1, "fallback.patience", "at least 1", fallback.patience);
  require(fallback.recover_after >= 1, "fallback.recover_after", "at least 1", fallback.recover_after);

  const std::int64_t forced = std::int64_t{policy.sink_chunks} + policy.recent_chunks;
  if (policy.max_chunks > 0 && policy.max_chunks < forced)
    throw argument_error(
        status::bad_argument,
        formatted("selection_policy::max_chunks {} is below sink_chunks {} + recent_chunks {} = {}",
                  policy.max_chunks, policy.sink_chunks, policy.recent_chunks, forced));
  if (policy.budget_bytes > 0 && chunks_in(policy.budget_bytes, geometry) < std::max<std::int64_t>(forced, 1))
    throw argument_error(
        status::bad_argument,
        formatted("selection_policy::budget_bytes {} holds {} chunks of {} bytes, below sink_chunks {} + "
                  "recent_chunks {} = {}",
                  policy.budget_bytes, chunks_in(policy.budget_bytes, geometry),
                  chunk_layout(geometry).chunk_bytes(), policy.sink_chunks, policy.recent_chunks, forced));
  if (policy.max_chunks > 0 && policy.min_chunks > policy.max_chunks)
    throw argument_error(status::bad_argument,
                         formatted("selection_policy::min_chunks {} is above max_chunks {}",
                                   policy.min_chunks, policy.max_chunks));
}

std::int64_t budget_chunks(const selection_policy& policy, const kv_geometry& geometry,
                           std::int64_t complete_chunks) noexcept {
  const std::int64_t n = std::max<std::int64_t>(complete_chunks, 0);
  if (!is_limited(policy)) return n;
  const std::int64_t forced =
      std::min<std::int64_t>(std::int64_t{policy.sink_chunks} + policy.recent_chunks, n);
  std::int64_t budget = n;
  // nearbyint rounds half to even, as the evaluation's budgets are defined.
  if (policy.budget_fraction > 0) budget = part_of(policy.budget_fraction, n);
  if (policy.max_chunks > 0) budget = std::min(budget, policy.max_chunks);
  if (policy.budget_bytes > 0) budget = std::min(budget, chunks_in(policy.budget_bytes, geometry));
  return std::min(std::max(budget, forced), n);
}

selection_policy fitted(const selection_policy& policy, std::int64_t complete_chunks) noexcept {
  selection_policy p = policy;
  if (p.mode != selection_mode::budget || p.budget_fraction <= 0) return p;
  const auto budget =
      static_cast<std::int64_t>(std::nearbyint(p.budget_fraction * static_cast<double>(complete_chunks)));
  const std::int64_t room = budget - (budget + 1) / 2 - p.sink_chunks;
  if (p.recent_chunks > room)
    p.recent_chunks = std::min(p.recent_chunks, static_cast<std::int32_t>(std::max<std::int64_t>(room, 2)));
  return p;
}

sequence_options sequence_options_for(const selection_policy& policy, const kv_geometry& geometry,
                                      std::int64_t max_tokens, std::int64_t late_tokens) {
  validate(policy, geometry);
  if (late_tokens < 0)
    throw argument_error(
        status::bad_argument,
        formatted("sequence_options_for: late_tokens must not be negative, it is {}", late_tokens));
  if (max_tokens < 1)
    throw argument_error(
        status::bad_argument,
        formatted("sequence_options_for: max_tokens must be at least 1, it is {}", max_tokens));
  if (geometry.tokens_per_chunk() < 1)
    throw argument_error(status::bad_argument, "sequence_options_for: the geometry has empty chunks");
  sequence_options options;
  options.max_tokens = max_tokens;
  options.sink_chunks = policy.sink_chunks;
  options.recent_chunks = policy.recent_chunks;
  const std::int64_t all = geometry.chunks_for(max_tokens);
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  // A threshold without a budget may ask for all and has to be able to ask for less.
  if (policy.mode != selection_mode::everything) options.max_resident_chunks = all;
  if (is_limited(policy)) {
    // Before the next refresh come one interval of decoding or, when a prompt comes in pieces, the newest
    // chunks of a piece, while those of the piece before are still there.
    const std::int64_t growth =
        std::max<std::int64_t>(
            geometry.chunks_for(std::min(late_tokens, most - policy.interval) + policy.interval),
            policy.recent_chunks) +
        1;
    const std::int64_t forced = std::int64_t{policy.sink_chunks} + policy.recent_chunks;
    const std::int64_t budget = std::max(budget_chunks(policy, geometry, all), forced);
    options.max_resident_chunks = budget < all - growth ? budget + 1 + growth : all;
  }
  return options;
}

}  // namespace v0
}  // namespace flashmemory
