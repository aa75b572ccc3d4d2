// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace tinylm {

/// Fast-tier bytes of one sequence, and what the same tokens take when all of them are resident.
struct footprint {
  std::size_t slots = 0;  ///< K and V of resident chunks
  std::size_t index = 0;  ///< index keys, or whatever else the policy ranks by
  std::size_t tables = 0;
  std::size_t everything = 0;  ///< K and V of all chunks
  std::int64_t resident_chunks = 0;
  std::int64_t chunks = 0;

  std::size_t total() const noexcept { return slots + index + tables; }
  double fraction() const noexcept {
    return everything == 0 ? 0.0 : static_cast<double>(total()) / static_cast<double>(everything);
  }
};

/// One choice of what stays resident.
struct refresh {
  std::int64_t tokens = 0;  ///< processed when it was made
  std::int64_t complete_chunks = 0;
  std::int64_t kept_chunks = 0;  ///< of the complete ones
  flashmemory::refresh_reason reason = flashmemory::refresh_reason::none;
  double seconds = 0;  ///< scoring and recall
  std::int64_t bytes_recalled = 0;
  std::vector<flashmemory::chunk_id> resident;  ///< complete chunks, ascending
  std::vector<float> scores;                    ///< [complete_chunks]

  double kept_fraction() const noexcept {
    return complete_chunks == 0 ? 1.0
                                : static_cast<double>(kept_chunks) / static_cast<double>(complete_chunks);
  }
};

/// What it took to generate a text.
struct run_record {
  std::vector<token_id> ids;
  std::string text;
  bool ended = false;                     ///< by a newline or end token, not by the limit
  std::vector<double> step_seconds;       ///< per step: the whole of it, choosing included
  std::vector<double> attention_seconds;  ///< of that, in sparse_attend()
  std::vector<refresh> refreshes;
  std::vector<footprint> footprints;       ///< after each step
  std::vector<std::vector<float>> masses;  ///< per step, if asked for

  double seconds() const noexcept;
  double mean_fraction() const noexcept;  ///< of the footprint
  double mean_bytes() const noexcept;
  std::size_t peak_bytes() const noexcept;
  double peak_fraction() const noexcept;
  double kept_fraction() const noexcept;  ///< mean over refreshes of kept / complete chunks; 1 without any
};

/// The q-quantile of `values`, nearest rank; 0 if there are none.
double quantile(std::vector<double> values, double q);

}  // namespace tinylm
