// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/record/recordings.hpp>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// Which rows an export has.
struct retrieval_export_options {
  label_rule rule;
  window_options windows;       ///< entries_per_chunk decides what a passage is
  std::int32_t query_tap = 0;   ///< of the recording's geometry
  std::int32_t key_stream = 0;  ///< likewise
  std::int32_t negatives =
      16;  ///< per row, drawn without replacement from the candidates; fewer if there are
           ///< no more
  bool keep_windows_without_positives = true;  ///< frameworks that cannot use them may skip these rows
  std::uint64_t seed = 1;                      ///< of the negatives; same seed, same files
};

/// What an export wrote.
struct retrieval_export_counts {
  std::int64_t documents = 0;
  std::int64_t rows = 0;
  std::int64_t positives = 0;
  std::int64_t negatives = 0;
};

/// Writes (query, positives, negatives) rows for retrieval frameworks into `folder`, which is made if its parent
/// exists: rows.jsonl with one line per recorded query whose window was recorded,
///     {"vectors": "000003.safetensors", "query": 7, "positives": [12, 40], "weights": [0.9, 0.6],
///      "negatives": [3, 18], "split": "train", "tag": "list16", "position": 4095}
/// and one file of vectors per document, F32: "queries" [queries, width], and "keys" [chunks, keys per chunk, width]
/// of the complete chunks. "query" is a row of queries, positives and negatives are rows of keys. Native keys are
/// written as the numbers that their bytes stand for. One document is in memory at a time; rows.jsonl appears last,
/// as a whole.
/// \throws argument_error for options that do not fit the recordings; what recordings::load() throws; io_failure
FLASHMEMORY_API retrieval_export_counts export_retrieval(const recordings& data,
                                                         const retrieval_export_options& options,
                                                         const std::string& folder);

/// Where one encoder that was trained elsewhere taps the model.
struct retrieval_import {
  std::string path;    ///< safetensors file
  std::string prefix;  ///< of its tensors' names, e.g. "module."
  std::string name;    ///< of the retriever in the artifact; empty = "l<query_layer>k<key_layer>"
  std::int32_t query_layer = 0;
  std::int32_t key_layer = 0;
};

/// Makes a dual encoder of files that retrieval frameworks saved. Tensors, after the prefix, f32, bf16 or f16, linear
/// maps as [outputs, inputs]:
///     query.down.weight [rank, hidden], query.norm.weight [rank], query.up.weight [heads * 128, rank],
///     query.gate.weight [heads, hidden], key.weight [128, hidden] (absent where the model has index keys), and
///     logit_offset (scalar or [1], absent = 0)
/// for the score sum_h gate_h relu(q_h . k) + logit_offset with q = Hadamard(up(RMSNorm(down(x)) * norm)), gates
/// scaled by (128 heads)^-0.5 and k = Hadamard(key(mean of the window)); see dual_encoder_indexer.
/// \param base  everything that files do not say: q_norm_eps, rope, tokens_per_key, key_window, ensemble,
///     model_fingerprint; its weights and dimensions are replaced
/// \throws format_error naming file and tensor; io_failure; argument_error if files disagree on dimensions or `files`
///     is empty
FLASHMEMORY_API dual_encoder_config import_dual_encoder(const std::vector<retrieval_import>& files,
                                                        dual_encoder_config base);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
