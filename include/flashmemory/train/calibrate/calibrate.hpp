// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// How an indexer is looked at.
struct evaluation_options {
  label_rule labels;
  window_options windows;
  dataset_split split = dataset_split::validation;
  std::vector<double> budgets = {0.02, 0.05, 0.10, 0.135, 0.20};  ///< shares of the complete chunks
  std::int64_t position_bucket = 4096;      ///< tokens; buckets double: below it, below twice it, ...
  std::int64_t max_windows = 64;            ///< of a document, evenly spaced; 0 = all
  std::int64_t max_documents = 0;           ///< 0 = all of the split
  thread_hook threads = default_threads();  ///< results do not depend on it
};

/// What a budget buys. Sink and recent chunks are paid from it, at least one more chunk is always chosen.
struct budget_result {
  double budget = 0;
  double recall = 0;    ///< positives among the chosen chunks, of all positives
  double coverage = 0;  ///< attention mass on chosen candidates, of that on all candidates; mean of windows
  double oracle_coverage = 0;  ///< the same if the chunks with most mass had been chosen
};

/// Windows that have something in common.
struct group_result {
  std::string name;  ///< "all", "tag <tag>", "position <from>-<below>"
  std::int64_t windows = 0;
  std::int64_t needing = 0;  ///< of them, with positives
  std::int64_t positives = 0;
  double threshold_recall = 0;  ///< positives with a logit above 0
  double threshold_footprint =
      0;                     ///< share of complete chunks kept by logit > 0, sink and recent; windows' mean
  double needless_kept = 0;  ///< share of candidates with a logit above 0 in windows that need nothing old
  std::vector<budget_result> budgets;
};

/// What an indexer does on recordings.
struct evaluation {
  std::vector<group_result> groups;  ///< "all" first, then by tag, then by position
  std::int64_t documents = 0;
  double seconds = 0;
};

/// Scores windows of recorded documents with the trainer's own forward pass, and compares the choice with the
/// labels and with the attention that was paid. One document is in memory at a time.
/// \throws argument_error if the split is empty or something does not fit
FLASHMEMORY_API evaluation evaluate(const document_source& source, const dual_encoder_config& config,
                                    const evaluation_options& options);

/// A table for people, 100 columns.
FLASHMEMORY_API std::string to_table(const evaluation& result);
/// The same as a JSON object.
FLASHMEMORY_API std::string to_json(const evaluation& result);

/// What the threshold is to reach on held-out windows. One of the two is above 0.
struct calibration_goal {
  double recall = 0;     ///< of positives
  double footprint = 0;  ///< mean share of complete chunks kept, sink and recent included
  bool per_layer =
      true;  ///< may shift retrievers against each other, where that keeps less for the same recall
};

/// What calibrate() did.
struct calibration {
  calibration_goal goal;
  double recall = 0;            ///< reached on the windows it looked at
  double footprint = 0;         ///< likewise
  std::vector<double> offsets;  ///< added to the retrievers' logit offsets
  std::int64_t windows = 0;
  std::int64_t positives = 0;
};

/// Shifts the logit offsets so that "logit > 0" reaches the goal. Ranking inside a retriever does not change.
/// \throws argument_error for a goal that cannot work; if no held-out window needs anything and recall is the
///     goal
FLASHMEMORY_API calibration calibrate(const document_source& source, dual_encoder_config& config,
                                      const evaluation_options& options, const calibration_goal& goal);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
