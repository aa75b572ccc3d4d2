// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model.hpp"
#include "thread_pool.hpp"
#include "tokenizer.hpp"

namespace tinylm {

/// One layer of a forward pass, as it is shown to who records it. Valid during the call.
struct layer_pass {
  std::int32_t layer = 0;
  std::int64_t position = 0;                ///< of the first token
  flashmemory::view<const float, 2> input;  ///< [tokens, hidden], after the attention norm
  flashmemory::view<const float, 3> q;      ///< [tokens, heads, head_dim], rotated
  flashmemory::view<const float, 3> k;      ///< [tokens, kv_heads, head_dim], rotated; in the store already
};

using pass_callback = std::function<void(const layer_pass&)>;

/// One sequence as the engine sees it: where its K and V lie, and who looks at its hidden states.
struct served_sequence {
  flashmemory::chunk_store* store = nullptr;
  flashmemory::sequence_handle handle;
  std::vector<flashmemory::selector*> observers;  ///< are shown what they tap
  pass_callback on_layer;                         ///< if set, is shown every layer of every pass
};

/// For checks against a reference: what a prompt's forward pass computed on the way.
struct prompt_capture {
  std::map<std::int32_t, std::vector<float>> inputs;  ///< layer -> [tokens, hidden] after the attention norm;
                                                      ///< the layers that have an entry are written
  std::vector<float> hidden;  ///< [tokens, hidden] after the last layer, before the norm
  std::vector<float> logits;  ///< [tokens, vocabulary]
};

/// Reported while a prompt is processed: `done` of `total` layers.
using progress_callback = std::function<void(std::int64_t done, std::int64_t total)>;

/// Records the attention mass per chunk of a step, the largest over layers and heads.
struct mass_recorder {
  std::vector<float> mass;  ///< [chunks of the sequence], written by step()
};

/// Throws std::runtime_error naming `what` and the fault if `code` is not ok.
void require(flashmemory::status code, const flashmemory::fault& fault, const char* what);

/// Runs the model. flashmemory's store is its only KV cache: prompts, processed layer by layer, attend to everything in
/// it, generated tokens to whatever is resident.
class engine {
 public:
  engine(const model& weights, thread_pool& threads);
  ~engine();

  const model& weights() const noexcept { return model_; }
  thread_pool& threads() noexcept { return threads_; }

  /// Processes a whole prompt into an empty sequence.
  /// \returns logits of the last token [vocabulary], valid until the next call
  std::span<const float> prefill(const served_sequence& sequence, std::span<const token_id> ids,
                                 const progress_callback& progress = {}, prompt_capture* capture = nullptr);

  /// Processes the next 1 to max_step_tokens tokens of a sequence.
  /// \param recorder  if not null, is given the step's attention mass; slow
  /// \returns logits of the last token [vocabulary], valid until the next call
  std::span<const float> step(const served_sequence& sequence, std::int64_t position,
                              std::span<const token_id> ids, mass_recorder* recorder = nullptr);

  /// Seconds of the last step() that were spent in sparse_attend().
  double attention_seconds() const noexcept { return attention_seconds_; }

 private:
  struct prompt_buffers;
  struct step_buffers;

  void project_all(const projection& p, const float* x, std::int32_t tokens, float* y);
  void reserve_scratch(const served_sequence& sequence);

  const model& model_;
  thread_pool& threads_;
  std::unique_ptr<step_buffers> step_;
  std::vector<float> logits_;
  double attention_seconds_ = 0;
};

/// Id of the largest logit, the lowest id among equals.
token_id greedy(std::span<const float> logits) noexcept;

}  // namespace tinylm
