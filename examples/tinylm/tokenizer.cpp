// SPDX-License-Identifier: MIT
#include "tokenizer.hpp"

#include <fmt/format.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace tinylm {
namespace {

enum class byte_class { letter, digit, line, space, other };

byte_class class_of(char c) noexcept {
  const auto b = static_cast<unsigned char>(c);
  if ((b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z') || b >= 128) return byte_class::letter;
  if (b >= '0' && b <= '9') return byte_class::digit;
  if (b == '\n' || b == '\r' || b == '\t') return byte_class::line;
  return b == ' ' ? byte_class::space : byte_class::other;
}

bool forms_runs(byte_class c) noexcept { return c == byte_class::letter || c == byte_class::other; }

std::size_t word_end(std::string_view text, std::size_t begin) noexcept {
  std::size_t at = begin;
  if (class_of(text[at]) == byte_class::space && at + 1 < text.size() && forms_runs(class_of(text[at + 1])))
    ++at;
  const byte_class run = class_of(text[at++]);
  if (!forms_runs(run)) return at;
  while (at < text.size() && class_of(text[at]) == run) ++at;
  return at;
}

std::uint64_t pair_key(token_id a, token_id b) noexcept {
  return std::uint64_t{static_cast<std::uint32_t>(a)} << 32 | static_cast<std::uint32_t>(b);
}

}  // namespace

tokenizer::tokenizer(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  try {
    const auto json = nlohmann::json::parse(file);
    if (json.at("type") != "byte_bpe") throw std::runtime_error("type is not byte_bpe");
    for (int b = 0; b < 256; ++b) pieces_.emplace_back(1, static_cast<char>(b));
    for (const auto& merge : json.at("merges")) {
      const auto a = merge.at(0).get<token_id>();
      const auto b = merge.at(1).get<token_id>();
      ranks_.emplace(pair_key(a, b), static_cast<token_id>(pieces_.size()));
      pieces_.push_back(piece(a) + piece(b));
    }
    pieces_.resize(json.at("vocab_size").get<std::size_t>());
    bos_ = json.at("special_tokens").at("<|bos|>").get<token_id>();
    eos_ = json.at("special_tokens").at("<|eos|>").get<token_id>();
  } catch (const std::exception& e) {
    throw std::runtime_error(fmt::format("{}: {}", path, e.what()));
  }
}

const std::vector<token_id>& tokenizer::encode_word(std::string_view word) const {
  std::string key(word);
  if (const auto found = cache_.find(key); found != cache_.end()) return found->second;
  std::vector<token_id> ids;
  for (const char c : word) ids.push_back(static_cast<unsigned char>(c));
  for (;;) {
    token_id best = std::numeric_limits<token_id>::max();  // merged ids grow with rank
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks_.find(pair_key(ids[i], ids[i + 1]));
      if (found != ranks_.end() && found->second < best) best = found->second;
    }
    if (best == std::numeric_limits<token_id>::max()) break;
    std::vector<token_id> merged;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto found = i + 1 < ids.size() ? ranks_.find(pair_key(ids[i], ids[i + 1])) : ranks_.end();
      if (found != ranks_.end() && found->second == best) {
        merged.push_back(best);
        ++i;
      } else {
        merged.push_back(ids[i]);
      }
    }
    ids = std::move(merged);
  }
  return cache_.emplace(std::move(key), std::move(ids)).first->second;
}

std::vector<token_id> tokenizer::encode(std::string_view text) const {
  std::vector<token_id> ids;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = word_end(text, begin);
    const auto& word = encode_word(text.substr(begin, end - begin));
    ids.insert(ids.end(), word.begin(), word.end());
    begin = end;
  }
  return ids;
}

std::string tokenizer::decode(std::span<const token_id> ids) const {
  std::string text;
  for (const token_id id : ids) text += piece(id);
  return text;
}

}  // namespace tinylm
