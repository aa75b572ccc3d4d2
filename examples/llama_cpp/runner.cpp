// SPDX-License-Identifier: MIT
#include "runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace llama_flashmemory {

namespace {

/// One token of one sequence, made once and used for every step.
class one_token {
 public:
  explicit one_token(std::int32_t room) : batch_(llama_batch_init(room, 0, 1)) {}
  ~one_token() { llama_batch_free(batch_); }
  one_token(const one_token&) = delete;
  one_token& operator=(const one_token&) = delete;

  const llama_batch& fill(const llama_token* tokens, std::int32_t count, std::int64_t position,
                          llama_seq_id sequence, bool last) {
    batch_.n_tokens = count;
    for (std::int32_t i = 0; i < count; ++i) {
      batch_.token[i] = tokens[i];
      batch_.pos[i] = static_cast<llama_pos>(position + i);
      batch_.n_seq_id[i] = 1;
      batch_.seq_id[i][0] = sequence;
      batch_.logits[i] = last && i + 1 == count;
    }
    return batch_;
  }

 private:
  llama_batch batch_;
};

llama_context_params context_params(const runner_options& o) {
  auto p = llama_context_default_params();
  p.n_ubatch = static_cast<std::uint32_t>(o.ubatch);
  p.n_batch = p.n_ubatch;
  p.n_threads = p.n_threads_batch = o.threads;
  p.type_k = p.type_v = o.cache;
  p.no_perf = true;
  return p;
}

class plain_runner final : public runner {
 public:
  plain_runner(const text_model& model, const runner_options& o)
      : ubatch_(o.ubatch), room_(o.context), rows_(o.ubatch) {
    auto p = context_params(o);
    p.n_ctx = static_cast<std::uint32_t>(o.context);
    p.n_seq_max = 1;
    p.swa_full = false;
    p.flash_attn_type = o.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context_.reset(llama_init_from_model(model.get(), p));
    if (!context_) throw std::runtime_error(fmt::format("llama.cpp made no context of {} tokens", o.context));
    const model_facts facts = facts_of(model.get());
    const auto stated = metadata_of(model.get())(facts.architecture + ".attention.key_length");
    const auto dim = stated ? std::stoull(*stated)
                            : std::size_t(facts.hidden) / std::size_t(llama_model_n_head(model.get()));
    token_bytes_ = ggml_row_size(o.cache, 2 * static_cast<std::int64_t>(dim)) *
                   std::size_t(llama_model_n_head_kv(model.get())) * facts.full.size();
  }

  void prompt(const std::vector<llama_token>& tokens) override {
    if (length_ + static_cast<std::int64_t>(tokens.size()) > room_)
      throw std::runtime_error(fmt::format("a prompt of {} tokens does not fit: {} of {} are taken",
                                           tokens.size(), length_, room_));
    for (std::size_t at = 0; at < tokens.size();) {
      const auto count =
          static_cast<std::int32_t>(std::min<std::size_t>(tokens.size() - at, std::size_t(ubatch_)));
      feed(tokens.data() + at, count, at + static_cast<std::size_t>(count) == tokens.size());
      at += static_cast<std::size_t>(count);
    }
  }
  void step(llama_token token) override { feed(&token, 1, true); }
  // Not a copy of the sequence: windows keep no cells of their own beside those that two sequences share.
  void branch() override {
    if (branched_at_ == length_) return;
    state_.resize(llama_state_seq_get_size(context_.get(), sequence_));
    state_.resize(llama_state_seq_get_data(context_.get(), state_.data(), state_.size(), sequence_));
    branched_at_ = length_;
  }
  void back() override {
    llama_memory_seq_rm(memory(), sequence_, -1, -1);
    if (llama_state_seq_set_data(context_.get(), state_.data(), state_.size(), sequence_) == 0)
      throw std::runtime_error("llama.cpp does not take back its own state");
    length_ = branched_at_;
  }
  void shorten(std::int64_t tokens) override {
    if (!llama_memory_seq_rm(memory(), sequence_, static_cast<llama_pos>(tokens), -1))
      throw std::runtime_error("llama.cpp cannot go back");
    branched_at_ = -1;
    length_ = tokens;
  }
  std::int64_t tokens() const override { return length_; }
  const float* logits() const override { return llama_get_logits_ith(context_.get(), -1); }
  adapter_footprint footprint() const override {
    adapter_footprint f;
    f.tokens = length_;
    f.resident_bytes = f.all_bytes = static_cast<std::size_t>(length_) * token_bytes_;
    return f;
  }
  void save(const std::string&) const override {
    throw std::runtime_error("only flashmemory's side saves sessions");
  }
  void load(const std::string&) override {
    throw std::runtime_error("only flashmemory's side loads sessions");
  }

 private:
  llama_memory_t memory() const { return llama_get_memory(context_.get()); }
  void feed(const llama_token* tokens, std::int32_t count, bool last) {
    const int code = llama_decode(context_.get(), rows_.fill(tokens, count, length_, sequence_, last));
    if (code != 0) throw std::runtime_error(fmt::format("llama_decode() returned {}", code));
    length_ += count;
  }

  struct context_free {
    void operator()(llama_context* c) const noexcept { llama_free(c); }
  };
  std::unique_ptr<llama_context, context_free> context_;
  std::int32_t ubatch_;
  std::int64_t room_, length_ = 0, branched_at_ = -1;  ///< where state_ was taken
  std::vector<std::uint8_t> state_;
  llama_seq_id sequence_ = 0;
  std::size_t token_bytes_ = 0;  ///< K and V of a token in the layers that see everything
  one_token rows_;
};

class adapted_runner final : public runner {
 public:
  adapted_runner(const text_model& model, const runner_options& o) : rows_(o.ubatch) {
    adapter_options a = o.adapted;
    a.max_tokens = o.context;
    a.max_sequences = o.branches ? 2 : 1;
    engine_ = std::make_unique<adapter>(model.get(), context_params(o), a);
  }
  void prompt(const std::vector<llama_token>& tokens) override { engine_->prompt(sequence_, tokens); }
  void step(llama_token token) override {
    engine_->decode(rows_.fill(&token, 1, engine_->tokens(sequence_), sequence_, true));
  }
  void branch() override {
    engine_->seq_cp(0, 1, -1, -1);
    sequence_ = 1;
  }
  void back() override {
    engine_->seq_rm(1, 0, -1);
    sequence_ = 0;
  }
  void shorten(std::int64_t tokens) override {
    engine_->seq_rm(sequence_, static_cast<llama_pos>(tokens), -1);
  }
  std::int64_t tokens() const override { return engine_->tokens(sequence_); }
  const float* logits() const override { return llama_get_logits_ith(engine_->context(), -1); }
  adapter_footprint footprint() const override { return engine_->footprint(sequence_); }
  void save(const std::string& path) const override { engine_->save(sequence_, path); }
  void load(const std::string& path) override { engine_->load(sequence_, path); }
  const adapter* adapted() const noexcept override { return engine_.get(); }
  llama_seq_id sequence() const noexcept override { return sequence_; }

 private:
  std::unique_ptr<adapter> engine_;
  llama_seq_id sequence_ = 0;
  one_token rows_;
};

}  // namespace

std::unique_ptr<runner> make_plain(const text_model& model, const runner_options& options) {
  return std::make_unique<plain_runner>(model, options);
}

std::unique_ptr<runner> make_adapted(const text_model& model, const runner_options& options) {
  return std::make_unique<adapted_runner>(model, options);
}

llama_token greedy(const float* logits, std::int32_t vocabulary) noexcept {
  return static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
}

}  // namespace llama_flashmemory
