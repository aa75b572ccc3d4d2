// SPDX-License-Identifier: MIT
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "adapter.hpp"
#include "text_model.hpp"

namespace llama_flashmemory {

/// What decides how an engine runs.
struct runner_options {
  std::int64_t context = 8192;
  std::int32_t threads = 2;
  std::int32_t ubatch = 512;
  bool branches = false;        ///< whether branch() will be called
  bool flash_attention = true;  ///< llama.cpp alone
  ggml_type cache = GGML_TYPE_F16;
  adapter_options adapted;  ///< flashmemory alone
};

/// One conversation in an engine: llama.cpp by itself, or through flashmemory.
class runner {
 public:
  virtual ~runner() = default;

  /// Goes on with `tokens`; logits() are those of the last one.
  virtual void prompt(const std::vector<llama_token>& tokens) = 0;
  /// Goes on with one generated token.
  virtual void step(llama_token token) = 0;
  /// From here on a copy is continued, until back().
  virtual void branch() = 0;
  virtual void back() = 0;
  /// Drops what comes after the first `tokens` tokens.
  virtual void shorten(std::int64_t tokens) = 0;
  virtual std::int64_t tokens() const = 0;
  virtual const float* logits() const = 0;
  /// Bytes of K and V that attention reads from, and of all there are.
  virtual adapter_footprint footprint() const = 0;
  /// Puts the conversation in a file, and brings it back.
  virtual void save(const std::string& path) const = 0;
  virtual void load(const std::string& path) = 0;
  virtual const adapter* adapted() const noexcept { return nullptr; }
  /// Which sequence the conversation is now.
  virtual llama_seq_id sequence() const noexcept { return 0; }
};

/// llama.cpp as it is.
std::unique_ptr<runner> make_plain(const text_model& model, const runner_options& options);
/// llama.cpp through flashmemory.
std::unique_ptr<runner> make_adapted(const text_model& model, const runner_options& options);

/// The token of the largest logit.
llama_token greedy(const float* logits, std::int32_t vocabulary) noexcept;

}  // namespace llama_flashmemory
