// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "examples/llama_cpp/runner.hpp"
#include "tests/catch.hpp"

namespace llama_test {

using namespace llama_flashmemory;

/// The models' f32 copies by name: "smollm2" has 30 full layers, "gemma3" three of 18 and windows of 512.
const text_model* find_model(const std::string& name);

/// `count` tokens of a text that repeats nothing.
std::vector<llama_token> some_tokens(const text_model& model, std::size_t count, unsigned seed);

/// Greatest difference of logits.
double apart(const std::vector<float>& a, const std::vector<float>& b);

std::vector<float> logits_of(const runner& engine, const text_model& model);
std::vector<float> logits_of(const adapter& engine, const text_model& model, int row = -1);

/// llama.cpp's flash attention adds up f16 values in f16, which makes its window layers depend on the order of its cells;
/// of bf16 values it adds up in f32.
ggml_type cache_of(const text_model& model);

/// Logits of one state, reached by passes of other sizes, differ by less; those of another state by much more.
double rounding_of(const text_model& model);

runner_options small_settings(const text_model& model, std::int64_t context);
llama_context_params small_params(const text_model& model, int ubatch = 64);

/// A batch that is filled row by row.
class rows {
 public:
  explicit rows(int room) : batch_(llama_batch_init(room, 0, 1)) { batch_.n_tokens = 0; }
  ~rows() { llama_batch_free(batch_); }
  rows(const rows&) = delete;
  rows& operator=(const rows&) = delete;
  rows& add(llama_token token, llama_pos position, llama_seq_id sequence, bool logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token, batch_.pos[i] = position, batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence, batch_.logits[i] = logits;
    return *this;
  }
  llama_batch& get() { return batch_; }

 private:
  llama_batch batch_;
};

}  // namespace llama_test

/// At the top of a test with a model: ctest turns the sentence into "skipped".
#define FLASHMEMORY_LLAMA_MODEL(variable, name)                            \
  const text_model* const variable##_found = llama_test::find_model(name); \
  if (variable##_found == nullptr) {                                       \
    WARN("skipped: no model " << (name));                                  \
    return;                                                                \
  }                                                                        \
  const text_model& variable = *variable##_found
