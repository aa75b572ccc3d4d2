// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/indexer/dual_encoder_file.hpp"
#include "src/indexer/dual_encoder_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

nlohmann::json describe(const dual_encoder_config& config) {
  nlohmann::json retrievers = nlohmann::json::array();
  for (const retriever_weights& retriever : config.retrievers) {
    retrievers.push_back({{"name", retriever.name},
                          {"query_layer", retriever.query_layer},
                          {"key_layer", retriever.key_layer}});
  }
  const rope_options& rope = config.rope;
  return {{"hidden", config.hidden},
          {"rank", config.rank},
          {"heads", config.heads},
          {"q_norm_eps", config.q_norm_eps},
          {"bf16_rounding", config.bf16_rounding},
          {"rope",
           {{"dim", rope.dim},
            {"base", rope.base},
            {"factor", rope.factor},
            {"original_length", rope.original_length},
            {"beta_fast", rope.beta_fast},
            {"beta_slow", rope.beta_slow},
            {"max_positions", rope.max_positions}}},
          {"tokens_per_key", config.tokens_per_key},
          {"key_window", config.key_window},
          {"key_scale_floor", config.key_scale_floor},
          {"ensemble", config.combine == ensemble::max ? "max" : "mean"},
          {"reduction", config.reduce == key_reduction::max              ? "max"
                        : config.reduce == key_reduction::count_positive ? "count_positive"
                                                                         : "sum"},
          {"model_fingerprint", config.model_fingerprint},
          {"retrievers", retrievers}};
}

}  // namespace

void save_dual_encoder(const dual_encoder_config& config, const std::string& path,
                       const std::map<std::string, std::string>& notes) {
  detail::validate(config);
  std::map<std::string, std::string> metadata = notes;
  for (const char* name : {"format", "version", "config"}) {
    if (notes.count(name) == 0) continue;
    throw argument_error(status::bad_argument, formatted("{}: a note cannot be called '{}'", path, name));
  }
  std::string description;
  try {
    description = json_text(describe(config));
  } catch (const nlohmann::json::exception&) {
    throw argument_error(status::bad_argument,
                         formatted("{}: a retriever's name or model_fingerprint is not UTF-8", path));
  }
  std::vector<tensor_source> tensors;
  const auto add = [&](const retriever_weights& retriever, const char* name, const float* values,
                       std::vector<std::int64_t> shape) {
    tensor_source tensor;
    tensor.name = formatted("retrievers.{}.{}", retriever.name, name);
    tensor.shape = std::move(shape);
    tensor.data = reinterpret_cast<const std::byte*>(values);
    tensor.bytes = static_cast<std::size_t>(tensor.elements()) * sizeof(float);
    tensors.push_back(std::move(tensor));
  };
  for (const retriever_weights& retriever : config.retrievers) {
    add(retriever, "wq_a.weight", retriever.wq_a.data(), {config.rank, config.hidden});
    add(retriever, "q_norm_weight", retriever.q_norm.data(), {config.rank});
    add(retriever, "wq_b.weight", retriever.wq_b.data(),
        {std::int64_t{config.heads} * index_key_dim, config.rank});
    add(retriever, "weights_proj.weight", retriever.weights_proj.data(), {config.heads, config.hidden});
    if (!retriever.wk.empty())
      add(retriever, "wk.weight", retriever.wk.data(), {index_key_dim, config.hidden});
    add(retriever, "logit_offset", &retriever.logit_offset, {});
  }
  metadata["format"] = detail::artifact_format;
  metadata["version"] = detail::artifact_version;
  metadata["config"] = description;
  write_safetensors(path, tensors, metadata);
}

}  // namespace v0
}  // namespace flashmemory
