// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine.hpp"
#include "memory.hpp"
#include "tokenizer.hpp"

namespace tinylm {

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

/// Called with the record after every step.
using step_callback = std::function<void(const run_record&)>;

struct run_options {
  std::int64_t max_new_tokens = 64;
  bool keep_scores = false;
  bool record_mass = false;
  step_callback on_step;
};

/// Drives one branch: feeds tokens, refreshes what is resident when it is due, generates greedily.
class runner {
 public:
  runner(engine& model, const tokenizer& words, branch& sequence);

  /// Chooses the first resident set, from what the prompt's last token looks for.
  void warm_start(run_record& record, const run_options& options);

  /// Processes tokens that are given, e.g. a question, several at a time. With `choose_anew` the resident set
  /// is chosen again by the last of them, wherever the interval stands.
  std::vector<float> feed(std::span<const token_id> ids, bool choose_anew, run_record& record,
                          const run_options& options);

  /// Generates until a newline, an end token or the limit. The token that ends it is part of the record's
  /// text but is not processed.
  void generate(std::span<const float> logits, run_record& record, const run_options& options);

 private:
  std::span<const float> advance(std::span<const token_id> ids, run_record& record,
                                 const run_options& options);
  void note_refresh(run_record& record, const run_options& options);

  engine& engine_;
  const tokenizer& tokenizer_;
  branch& branch_;
  std::int64_t position_ = 0;
  std::int64_t refreshes_ = 0;
};

/// The q-quantile of `values`, nearest rank; 0 if there are none.
double quantile(std::vector<double> values, double q);

}  // namespace tinylm
