// SPDX-License-Identifier: MIT
#include "model_facts.hpp"

#include <algorithm>
#include <cstdlib>
#include <flashmemory/error.hpp>
#include <iterator>

namespace llama_flashmemory {

namespace fm = flashmemory;

namespace {

[[noreturn]] void refuse(const std::string& architecture, const std::string& reason) {
  throw fm::error(fm::status::unsupported, "model of architecture '" + architecture + "': " + reason);
}

/// How window layers alternate with full ones where the file does not say: llama.cpp's own defaults.
struct window_period {
  const char* architecture;
  std::int32_t period;
  bool full_first;  ///< the full layer is the first of a period, else the last
};
constexpr window_period known_periods[] = {
    {"gemma2", 2, false}, {"gemma3", 6, false},  {"cohere2", 4, false},     {"exaone4", 4, false},
    {"olmo2", 4, false},  {"gpt-oss", 2, false}, {"smallthinker", 4, true},
};

bool uses_alibi(const std::string& architecture) {
  constexpr const char* names[] = {"bloom", "mpt", "refact", "jais", "jina-bert-v2"};
  return std::any_of(std::begin(names), std::end(names),
                     [&](const char* name) { return architecture == name; });
}

/// The window layers of a pattern that is a period ("6") or a flag a layer ("[true, true, false]").
std::vector<bool> windows_of(const std::string& architecture, const std::optional<std::string>& pattern,
                             std::int32_t layers) {
  std::vector<bool> windowed;
  if (pattern && !pattern->empty() && pattern->front() == '[') {
    std::size_t at = 1;
    while (at < pattern->size()) {
      const auto end = std::min(pattern->find_first_of(",]", at), pattern->size());
      const std::string flag = pattern->substr(at, end - at);
      if (flag.find_first_not_of(' ') != std::string::npos)
        windowed.push_back(flag.find("true") != std::string::npos || flag.find('1') != std::string::npos);
      at = end + 1;
    }
    if (static_cast<std::int32_t>(windowed.size()) != layers)
      refuse(architecture, "its pattern of window layers names " + std::to_string(windowed.size()) + " of " +
                               std::to_string(layers) + " layers");
    return windowed;
  }
  const auto known = std::find_if(std::begin(known_periods), std::end(known_periods),
                                  [&](const window_period& p) { return architecture == p.architecture; });
  const std::int32_t period = pattern                            ? std::atoi(pattern->c_str())
                              : known != std::end(known_periods) ? known->period
                                                                 : 0;
  const bool full_first = known != std::end(known_periods) && known->full_first;
  if (period < 1) refuse(architecture, "it has a sliding window, but which layers have it is not known");
  for (std::int32_t l = 0; l < layers; ++l)
    windowed.push_back(full_first ? l % period != 0 : l % period < period - 1);
  return windowed;
}

}  // namespace

bool is_tested_version(const std::string& version) {
  return version.substr(0, version.find('-')) == tested_llama_version;
}

metadata metadata_of(const llama_model* model) {
  return [model](const std::string& key) -> std::optional<std::string> {
    std::string value(64, '\0');
    for (;;) {
      const std::int32_t length = llama_model_meta_val_str(model, key.c_str(), value.data(), value.size());
      if (length < 0) return std::nullopt;
      if (static_cast<std::size_t>(length) < value.size())
        return value.substr(0, static_cast<std::size_t>(length));
      value.resize(static_cast<std::size_t>(length) + 1);
    }
  };
}

model_facts facts_from(const metadata& values, const model_counts& counts) {
  model_facts facts;
  const auto architecture = values("general.architecture");
  if (!architecture || architecture->empty())
    throw fm::error(fm::status::unsupported, "the model's file does not say its general.architecture");
  facts.architecture = *architecture;
  facts.layers = counts.layers;
  facts.hidden = counts.hidden;
  facts.trained_context = counts.trained_context;
  const auto value = [&](const char* name) { return values(facts.architecture + "." + name); };
  const auto positive = [&](const char* name) {
    const auto text = value(name);
    return text && std::atof(text->c_str()) > 0;
  };

  if (counts.recurrent) refuse(facts.architecture, "it has recurrent state, which is not K and V of tokens");
  if (positive("attention.kv_lora_rank"))
    refuse(facts.architecture, "its attention is multi-head latent (MLA), which the adapter does not read");
  if (uses_alibi(facts.architecture) || positive("attention.max_alibi_bias"))
    refuse(facts.architecture, "its logits carry ALiBi's bias, which the adapter does not add");
  if (!counts.decoder_only) refuse(facts.architecture, "it has an encoder");
  const auto causal = value("attention.causal");
  if (causal && (*causal == "false" || *causal == "0"))
    refuse(facts.architecture, "its attention is not causal");
  const auto scaling = value("rope.scaling.type");
  if (scaling && *scaling == "longrope")
    refuse(facts.architecture,
           "its position encoding (longrope) depends on the size of llama.cpp's context, which is kept small "
           "here");
  if (positive("attention.shared_kv_layers")) refuse(facts.architecture, "some of its layers share K and V");

  std::vector<bool> windowed(static_cast<std::size_t>(counts.layers), false);
  if (counts.window > 0) {
    facts.window = counts.window;
    windowed = windows_of(facts.architecture, value("attention.sliding_window_pattern"), counts.layers);
  }
  for (std::int32_t l = 0; l < counts.layers; ++l)
    (windowed[static_cast<std::size_t>(l)] ? facts.windowed : facts.full).push_back(l);
  if (facts.full.empty())
    refuse(facts.architecture, "all of its layers have a sliding window, so there is nothing to select");
  if (facts.windowed.empty()) facts.window = 0;
  return facts;
}

model_facts facts_of(const llama_model* model) {
  model_counts counts;
  counts.layers = llama_model_n_layer(model);
  counts.hidden = llama_model_n_embd(model);
  counts.trained_context = llama_model_n_ctx_train(model);
  counts.window = llama_model_n_swa(model);
  counts.recurrent = llama_model_is_recurrent(model) || llama_model_is_hybrid(model);
  counts.decoder_only = !llama_model_has_encoder(model) && llama_model_has_decoder(model);
  return facts_from(metadata_of(model), counts);
}

}  // namespace llama_flashmemory
