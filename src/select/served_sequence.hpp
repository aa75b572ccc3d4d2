// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/select/selector.hpp>
#include <limits>
#include <vector>

#include "src/select/held_scores.hpp"
#include "src/select/row_ring.hpp"
#include "src/select/stopwatch.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// The key encoder's input: one ring per key_source. `torn` says that an append failed between streams, so
/// that some hold keys of tokens that the ring does not.
struct key_input {
  row_ring ring;
  bool torn = false;
};

/// Where a refresh under way stands.
enum class flight_phase : std::int32_t {
  none,
  scoring,    ///< until the host has the scores
  scored,     ///< until a recall may start
  recalling,  ///< until its chunks are there
};

/// A refresh from the step that scores to the one that exchanges the resident set.
struct refresh_flight {
  flight_phase phase = flight_phase::none;
  std::int64_t position = -1;  ///< that is scored
  std::int64_t chunks = 0;     ///< complete then
  std::int64_t steps = 0;      ///< since then
  bool late = false;           ///< counted as late
  bool told = false;           ///< that it was chosen
  std::int64_t cut = 0;        ///< chunks of the plan that the quota has no room for
  fault failure;               ///< why it could not start, if its code says so
  selection_report report;     ///< becomes the sequence's
  stopwatch watch;             ///< of the phase
  /// Fallback as it is if the refresh fails.
  fallback_stage stage = fallback_stage::normal;
  std::int32_t calls = 0, calm = 0;
  std::int64_t widened = 0, everything = 0, recovered = 0;  ///< for the counters, if it does not
};

/// All that is kept for one sequence.
struct served_sequence {
  std::int32_t place = 0;  ///< in the selector's pool
  sequence_handle handle;
  bool active = false;
  bool own_policy = false;
  selection_policy policy;
  std::int64_t max_tokens = 0;
  std::int64_t quota = 0;  ///< slots it may pin, never 0

  bool started = false;           ///< its warm start was tried
  bool requested = false;         ///< request_refresh()
  std::int64_t open_prompt = -1;  ///< where a prompt began that has more to come; -1 = there is none
  std::int64_t ended_prompt =
      -1;                        ///< tokens at the newest end of a prompt, unless the selection there failed
  bool prompt_due = false;       ///< a prompt has ended and nothing was selected since
  bool piece_due = false;        ///< likewise a piece, with select_in_prompts
  std::int64_t processed = 0;    ///< tokens at the last select_chunks()
  std::int64_t refreshed = 0;    ///< tokens at the last try
  std::int64_t next_due = 0;     ///< tokens from which on it is due
  std::int32_t failures = 0;     ///< refreshes running that met something that may pass
  std::int32_t step_tokens = 1;  ///< of the newest step, unless it was a prompt's
  std::uint64_t last_call = 0;   ///< finds duplicates in a batch

  fallback_stage stage = fallback_stage::normal;
  std::int32_t calls = 0;                               ///< refreshes in a row that called for more
  std::int32_t calm = 0;                                ///< refreshes in a row that did not
  float mass = std::numeric_limits<float>::infinity();  ///< smallest reported since the last refresh
  selection_report report;
  held_scores held;  ///< with selection_policy::hold alone
  refresh_flight flight;

  std::vector<row_ring> queries;  ///< per query_source
  std::vector<key_input> keys;    ///< per key_source
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
