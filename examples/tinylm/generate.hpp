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
#include "run_record.hpp"
#include "tokenizer.hpp"

namespace tinylm {

/// Called with the record after every step.
using step_callback = std::function<void(const run_record&)>;

struct run_options {
  std::int64_t max_new_tokens = 64;
  bool keep_scores = false;
  bool record_mass = false;
  flashmemory::selection_trace* trace = nullptr;  ///< is told of tokens and attention, if not null
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

}  // namespace tinylm
