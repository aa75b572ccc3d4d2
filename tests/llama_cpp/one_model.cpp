// SPDX-License-Identifier: MIT
#include "one_model.hpp"

#include <filesystem>
#include <map>
#include <random>

namespace llama_test {

const text_model* find_model(const std::string& name) {
  static std::map<std::string, std::unique_ptr<text_model>> loaded;
  const auto known = loaded.find(name);
  if (known != loaded.end()) return known->second.get();
  const std::string file = std::string(LLAMA_F32_MODELS) + "/" +
                           (name == "smollm2" ? "SmolLM2-135M-Instruct.Q4_1" : "gemma-3-270m-q4_k_m") +
                           ".f32.gguf";
  if (loaded.empty()) start_llama();
  auto& place = loaded[name];
  if (std::filesystem::exists(file)) place = std::make_unique<text_model>(file);
  return place.get();
}

std::vector<llama_token> some_tokens(const text_model& model, std::size_t count, unsigned seed) {
  static const char* const words[] = {"the",    "house", "of",    "a",    "river", "stone", "under", "light",
                                      "market", "and",   "when",  "they", "had",   "come",  "north", "with",
                                      "salt",   "seven", "ships", "in",   "years", "long",  "gone",  "by",
                                      "which",  "no",    "one",   "knew", "name",  "again"};
  std::mt19937 random(seed);
  std::string text;
  std::vector<llama_token> out = model.prompt_frame().before;
  for (std::size_t i = 0; i < 2 * count + 8; ++i)
    text += std::string(words[random() % std::size(words)]) + (random() % 9 == 0 ? ". " : " ");
  const auto more = model.tokens(text);
  out.insert(out.end(), more.begin(), more.end());
  out.resize(count);
  return out;
}

double apart(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    REQUIRE(std::isfinite(a[i]));
    most = std::max(most, std::abs(double(a[i]) - double(b[i])));
  }
  return most;
}

std::vector<float> logits_of(const runner& engine, const text_model& model) {
  return {engine.logits(), engine.logits() + model.vocabulary()};
}

std::vector<float> logits_of(const adapter& engine, const text_model& model, int row) {
  const float* const at = llama_get_logits_ith(engine.context(), row);
  REQUIRE(at != nullptr);
  return {at, at + model.vocabulary()};
}

ggml_type cache_of(const text_model& model) {
  return llama_model_n_swa(model.get()) > 0 ? GGML_TYPE_BF16 : GGML_TYPE_F16;
}

double rounding_of(const text_model& model) { return llama_model_n_swa(model.get()) > 0 ? 1.0 : 0.15; }

runner_options small_settings(const text_model& model, std::int64_t context) {
  runner_options o;
  o.context = context;
  o.ubatch = 64;
  o.cache = cache_of(model);
  return o;
}

llama_context_params small_params(const text_model& model, int ubatch) {
  auto p = llama_context_default_params();
  p.n_ubatch = static_cast<std::uint32_t>(ubatch);
  p.n_threads = p.n_threads_batch = 2;
  p.type_k = p.type_v = cache_of(model);
  return p;
}

}  // namespace llama_test
