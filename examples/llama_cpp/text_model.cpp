// SPDX-License-Identifier: MIT
#include "text_model.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace llama_flashmemory {

namespace {

/// The last error that llama.cpp has logged: why a call of it came back empty-handed.
std::string& last_error() {
  static std::string text;
  return text;
}

}  // namespace

void start_llama() {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level != GGML_LOG_LEVEL_ERROR) return;
        last_error() = text;
        while (!last_error().empty() && last_error().back() == '\n') last_error().pop_back();
      },
      nullptr);
  llama_backend_init();
}

text_model::text_model(const std::string& path) : path_(path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  char magic[4] = {};
  file.read(magic, sizeof magic);
  if (std::memcmp(magic, "GGUF", 4) != 0) throw std::runtime_error(path + ": is no GGUF");
  last_error().clear();
  auto params = llama_model_default_params();
  params.n_gpu_layers = 0;
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_) throw std::runtime_error(fmt::format("{}: llama.cpp cannot load it: {}", path, last_error()));
  vocab_ = llama_model_get_vocab(model_.get());
}

std::string text_model::tag() const {
  std::ifstream file(path_, std::ios::binary);
  std::vector<std::uint64_t> words(std::size_t{1} << 17);
  std::uint64_t hash = 14695981039346656037ull;
  while (file) {
    std::fill(words.begin(), words.end(), 0);
    file.read(reinterpret_cast<char*>(words.data()),
              static_cast<std::streamsize>(words.size() * sizeof(words[0])));
    const auto count = static_cast<std::size_t>(file.gcount());
    for (std::size_t i = 0; i < (count + 7) / 8; ++i)
      hash = (hash ^ words[i]) * 1099511628211ull, hash ^= hash >> 29;
  }
  return fmt::format("gguf {:016x}", hash);
}

std::vector<llama_token> text_model::tokens(const std::string& text, bool special) const {
  std::vector<llama_token> out(text.size() + 8);
  const auto length = static_cast<std::int32_t>(text.size());
  std::int32_t count = llama_tokenize(vocab_, text.data(), length, out.data(),
                                      static_cast<std::int32_t>(out.size()), false, special);
  if (count < 0) {
    out.resize(static_cast<std::size_t>(-count));
    count = llama_tokenize(vocab_, text.data(), length, out.data(), -count, false, special);
  }
  if (count < 0) throw std::runtime_error(path_ + ": a text could not be cut into tokens");
  out.resize(static_cast<std::size_t>(count));
  return out;
}

std::string text_model::text(llama_token token) const {
  std::string piece(64, '\0');
  std::int32_t length =
      llama_token_to_piece(vocab_, token, piece.data(), static_cast<std::int32_t>(piece.size()), 0, false);
  if (length < 0) {
    piece.resize(static_cast<std::size_t>(-length));
    length = llama_token_to_piece(vocab_, token, piece.data(), -length, 0, false);
  }
  piece.resize(static_cast<std::size_t>(std::max(length, 0)));
  return piece;
}

std::string text_model::text(const std::vector<llama_token>& all) const {
  std::string out;
  for (const llama_token t : all) out += text(t);
  return out;
}

std::string text_model::in_template(const std::string& user) const {
  const char* const shape = llama_model_chat_template(model_.get(), nullptr);
  const llama_chat_message message{"user", user.c_str()};
  std::string out(user.size() + 1024, '\0');
  const std::int32_t length =
      llama_chat_apply_template(shape, &message, 1, true, out.data(), static_cast<std::int32_t>(out.size()));
  if (length < 0 || static_cast<std::size_t>(length) > out.size()) return {};
  out.resize(static_cast<std::size_t>(length));
  return out;
}

text_model::frame text_model::prompt_frame() const {
  frame f;
  if (llama_vocab_get_add_bos(vocab_)) f.before.push_back(llama_vocab_bos(vocab_));
  if (llama_model_chat_template(model_.get(), nullptr) == nullptr) return f;
  const std::string place = "TEXT COMES HERE";
  const std::string whole = in_template(place);
  const auto at = whole.find(place);
  if (at == std::string::npos) return f;
  const auto head = tokens(whole.substr(0, at), true);
  f.before.insert(f.before.end(), head.begin(), head.end());
  f.after = tokens(whole.substr(at + place.size()), true);
  f.chat = true;
  return f;
}

std::vector<llama_token> text_model::next_turn(const std::string& question) const {
  const std::string whole = in_template(question);
  if (whole.empty()) return tokens("\n\nQuestion: " + question + "\nAnswer:");
  return tokens("\n" + whole, true);
}

}  // namespace llama_flashmemory
