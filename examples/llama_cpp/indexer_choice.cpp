// SPDX-License-Identifier: MIT
#include "indexer_choice.hpp"

namespace llama_flashmemory {

namespace fm = flashmemory;

namespace {

/// The model's own queries against means of its keys: needs no training.
fm::pooled_keys_config pooled_keys(const indexer_setting& s) {
  std::vector<std::int32_t> layers;
  for (std::int32_t l = 0; l < s.geometry.layers; ++l) layers.push_back(l);
  auto config = fm::pooled_keys_of(s.geometry, s.query_heads, layers);
  config.softmax_scale = s.softmax_scale;
  config.uncounted_sink_chunks = s.sink_chunks;
  config.uncounted_recent_chunks = s.recent_chunks;
  return config;
}

}  // namespace

const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names{"full", "lsa", "quest", "recency"};
  return names;
}

std::unique_ptr<fm::indexer> choose_indexer(const std::string& policy, const indexer_setting& s) {
  if (policy == "full") return nullptr;
  if (policy == "recency") return std::make_unique<fm::recency_indexer>();
  const auto quest = [&] {
    return std::make_unique<fm::quest_indexer>(s.geometry, s.query_heads, s.max_sequences,
                                               s.geometry.chunks_for(s.max_tokens) + 1, s.softmax_scale);
  };
  if (policy == "quest") return quest();
  if (policy == "lsa") {
    if (s.artifact.empty()) return std::make_unique<fm::pooled_keys_indexer>(pooled_keys(s));
    auto config = fm::load_dual_encoder(s.artifact);
    if (config.hidden != s.hidden)
      throw fm::argument_error(fm::status::bad_shape, s.artifact + ": an indexer for hidden states of " +
                                                          std::to_string(config.hidden) + ", the model has " +
                                                          std::to_string(s.hidden));
    return std::make_unique<fm::dual_encoder_indexer>(std::move(config));
  }
  std::string known;
  for (const auto& name : policy_names()) known += (known.empty() ? "" : ", ") + name;
  throw fm::argument_error(fm::status::bad_argument, "policy '" + policy + "' is none of " + known);
}

}  // namespace llama_flashmemory
