// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trace_file.hpp"

namespace trace_view {

/// Consecutive chunks.
struct chunk_run {
  std::int64_t first = 0, end = 0;
};

/// The time during which one resident set was in force.
struct span {
  const refresh* cause = nullptr;
  std::int64_t first = 0,
               end = 0;  ///< tokens of the sequence: the set served queries at positions first to end - 1
  std::vector<chunk_run> resident;  ///< ascending; with the chunks that were completed meanwhile, which stay
  std::vector<float> mass;          ///< [chunks] mean over the queries that were measured; empty if none was
  std::int64_t measured = 0;        ///< queries
  std::string text;                 ///< that was generated

  std::int64_t resident_chunks() const noexcept;
};

/// One sequence as a picture needs it.
struct timeline {
  std::int64_t chunks = 0;
  std::vector<span> spans;

  bool measured() const noexcept;
  /// Share of chunks that were resident, mean over spans weighted by their length.
  double mean_resident() const noexcept;
};

/// Spans follow each other in the order of the trace; a rollback starts a new one at an earlier token.
timeline make_timeline(const traced_sequence& sequence, std::int64_t tokens_per_chunk);

}  // namespace trace_view
