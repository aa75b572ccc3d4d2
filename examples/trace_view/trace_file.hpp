// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <istream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace trace_view {

/// What is wrong with a trace, with its line.
class bad_trace : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A refresh, as far as it got.
struct refresh {
  std::int64_t position = 0;  ///< of the newest token then
  std::string reason;
  std::int64_t complete_chunks = 0, budget = 0;
  std::vector<std::int64_t> wanted;
  std::vector<float> scores;  ///< [complete_chunks] or none; NaN where there was no number
  bool in_force = false;
  std::int64_t tokens = 0;             ///< when it came into force
  std::vector<std::int64_t> resident;  ///< from then on, ascending
  std::int64_t recalled = 0, staleness = 0, unreadable = 0;
  double score_us = 0, recall_us = 0;
  std::string stage;
};

/// Attention that one query paid.
struct paid_attention {
  std::int64_t position = 0;
  std::vector<float> mass;  ///< [chunks]
};

/// What a trace says of one sequence.
struct traced_sequence {
  std::int64_t index = 0, generation = 0;
  std::string name;
  std::vector<refresh> refreshes;
  std::int64_t given_up = 0;
  std::vector<paid_attention> attention;
  std::map<std::int64_t, std::string> chunk_texts;
  std::vector<std::pair<std::int64_t, std::string>> token_texts;  ///< (position, text)
};

struct trace {
  std::string title;
  std::int64_t tokens_per_chunk = 0, layers = 0;
  std::vector<traced_sequence> sequences;  ///< by first appearance
  bool cut = false;                        ///< the last line was not whole, and is left out
};

/// Most chunks of a sequence that a trace may speak of: 268 M tokens of 64 a chunk.
inline constexpr std::int64_t most_chunks = std::int64_t{1} << 22;

/// Reads JSON lines as flashmemory::selection_trace writes them; events of kinds that are not known are passed over.
/// \throws bad_trace with the line's number and the field
trace read_trace(std::istream& in);

}  // namespace trace_view
