// SPDX-License-Identifier: MIT
#include "document.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <stdexcept>

namespace tinylm {
namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file || text.empty()) throw std::runtime_error(fmt::format("{}: cannot be read, or is empty", path));
  return text;
}

/// Sequences must be the same everywhere, which the standard's distributions are not.
std::uint64_t below(std::mt19937_64& random, std::uint64_t limit) { return random() % limit; }

class key_source {
 public:
  explicit key_source(const std::string& path) {
    std::ifstream file(path);
    std::string kind, word;
    while (file >> kind >> word) (kind == "adjective" ? adjectives_ : nouns_).push_back(word);
    if (adjectives_.empty() || nouns_.empty()) {
      throw std::runtime_error(fmt::format("{}: cannot be read, or lists no adjectives and nouns", path));
    }
  }

  std::string draw(std::mt19937_64& random) {
    if (used_.size() >= adjectives_.size() * nouns_.size()) throw std::runtime_error("too many needles");
    for (;;) {
      std::string key =
          adjectives_[below(random, adjectives_.size())] + "-" + nouns_[below(random, nouns_.size())];
      if (used_.insert(key).second) return key;
    }
  }

 private:
  std::vector<std::string> adjectives_;
  std::vector<std::string> nouns_;
  std::set<std::string> used_;
};

}  // namespace

document make_document(const tokenizer& words, const document_options& options) {
  std::mt19937_64 random(options.seed);
  document doc;
  key_source keys(options.words_path);
  std::vector<std::vector<token_id>> sentences;
  std::int64_t planted = 0;
  for (std::int32_t i = 0; i < options.needles; ++i) {
    needle n;
    n.key = keys.draw(random);
    for (int digit = 0; digit < 7; ++digit) n.number += static_cast<char>('0' + below(random, 10));
    sentences.push_back(
        words.encode(fmt::format(" The special magic number for {} is {}.", n.key, n.number)));
    planted += static_cast<std::int64_t>(sentences.back().size());
    doc.needles.push_back(std::move(n));
  }

  const std::string once = read_text(options.text_path);
  std::vector<token_id> text = words.encode(once);
  const std::int64_t wanted = options.tokens - 1 - planted;
  if (wanted < 64)
    throw std::runtime_error(fmt::format("{} needles do not fit {} tokens", options.needles, options.tokens));
  const auto again = words.encode((once.back() == '\n' ? "" : "\n") + once);
  while (static_cast<std::int64_t>(text.size()) < wanted) text.insert(text.end(), again.begin(), again.end());

  // Places behind a full stop: the tokens of what is put there are the same as if it had been written there.
  std::vector<std::int64_t> ends;
  for (std::int64_t i = 1; i <= wanted; ++i) {
    const std::string& before = words.piece(text[static_cast<std::size_t>(i - 1)]);
    const bool goes_on = i < static_cast<std::int64_t>(text.size());
    if (before == "." && (!goes_on || words.piece(text[static_cast<std::size_t>(i)]).front() == ' '))
      ends.push_back(i);
  }
  if (static_cast<std::int32_t>(ends.size()) < 2 * options.needles + 1) {
    throw std::runtime_error(
        fmt::format("{}: has too few sentences for {} needles", options.text_path, options.needles));
  }

  doc.ids.push_back(words.bos());
  std::int64_t copied = 0;
  const auto copy_to = [&](std::int64_t end) {
    doc.ids.insert(doc.ids.end(), text.begin() + copied, text.begin() + end);
    copied = end;
  };
  // The document ends with a sentence, and with one of its own.
  const std::uint64_t places = ends.size() - 1;
  for (std::size_t i = 0; i < sentences.size(); ++i) {
    const std::uint64_t first = places * i / sentences.size();
    const std::uint64_t last = places * (i + 1) / sentences.size();
    copy_to(ends[first + below(random, last - first)]);
    doc.needles[i].first_token = static_cast<std::int64_t>(doc.ids.size());
    doc.ids.insert(doc.ids.end(), sentences[i].begin(), sentences[i].end());
    doc.needles[i].last_token = static_cast<std::int64_t>(doc.ids.size()) - 1;
  }
  copy_to(ends.back());
  return doc;
}

}  // namespace tinylm
