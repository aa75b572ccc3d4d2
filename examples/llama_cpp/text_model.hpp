// SPDX-License-Identifier: MIT
#pragma once

#include <llama.h>

#include <memory>
#include <string>
#include <vector>

namespace llama_flashmemory {

/// A GGUF that llama.cpp has loaded, with its words.
class text_model {
 public:
  /// \throws std::runtime_error naming the file: not there, cut, no GGUF, refused by llama.cpp
  explicit text_model(const std::string& path);

  llama_model* get() const noexcept { return model_.get(); }
  const std::string& path() const noexcept { return path_; }
  std::int32_t trained_context() const noexcept { return llama_model_n_ctx_train(model_.get()); }
  /// Tokens of its vocabulary.
  std::int32_t vocabulary() const noexcept { return llama_vocab_n_tokens(vocab_); }
  /// Of the file's bytes, for sessions.
  std::string tag() const;

  /// \param special  whether control tokens' names in the text mean them
  std::vector<llama_token> tokens(const std::string& text, bool special = false) const;
  std::string text(llama_token token) const;
  std::string text(const std::vector<llama_token>& all) const;
  bool ends(llama_token token) const noexcept { return llama_vocab_is_eog(vocab_, token); }

  /// A prompt around a place where text is to come: what stands before and after it. Of a model with a chat template a
  /// user's message, of any other plain text.
  struct frame {
    std::vector<llama_token> before, after;
    bool chat = false;
  };
  frame prompt_frame() const;
  /// What stands between an answer and the next question of one conversation.
  std::vector<llama_token> next_turn(const std::string& question) const;

 private:
  struct model_free {
    void operator()(llama_model* m) const noexcept { llama_model_free(m); }
  };
  std::string in_template(const std::string& user) const;

  std::string path_;
  std::unique_ptr<llama_model, model_free> model_;
  const llama_vocab* vocab_ = nullptr;
};

/// Keeps llama.cpp's log to errors, and starts its backends; once in a program.
void start_llama();

}  // namespace llama_flashmemory
