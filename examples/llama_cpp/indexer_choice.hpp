// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <memory>
#include <string>
#include <vector>

namespace llama_flashmemory {

/// What an indexer is built for.
struct indexer_setting {
  flashmemory::kv_geometry geometry;  ///< of the full-attention layers, without index keys
  std::int32_t query_heads = 0;
  std::int32_t hidden = 0;
  float softmax_scale = 0;  ///< what the model's attention multiplies logits with
  std::int32_t max_sequences = 1;
  std::int64_t max_tokens = 0;
  std::int32_t sink_chunks = 0, recent_chunks = 0;  ///< always resident
  std::string artifact;  ///< a trained indexer's file for "lsa"; empty = pooled keys, which need no training
};

/// The names that choose_indexer() knows, "full" included.
const std::vector<std::string>& policy_names();

/// The one place that decides which indexer ranks chunks for a policy. Null for "full".
/// \throws flashmemory::argument_error for a name that it does not know, or whose artifact was made for another model
std::unique_ptr<flashmemory::indexer> choose_indexer(const std::string& policy,
                                                     const indexer_setting& setting);

}  // namespace llama_flashmemory
