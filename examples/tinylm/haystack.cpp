// SPDX-License-Identifier: MIT
#include "haystack.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string_view>

namespace tinylm {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw std::runtime_error(fmt::format("{}: cannot be read", path));
  return text;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void append(std::vector<token_id>& to, const std::vector<token_id>& ids) {
  to.insert(to.end(), ids.begin(), ids.end());
}

/// "a", "a and b", "a, b and c".
std::string list_text(const std::vector<std::string>& items) {
  std::string text;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) text += i + 1 == items.size() ? " and " : ", ";
    text += items[i];
  }
  return text;
}

}  // namespace

std::string statement::sentence() const {
  return fmt::format(" The special magic number for {} is {}.", key, value);
}

std::string question_text(const std::vector<std::string>& keys, bool all_of_one) {
  const char* form = all_of_one         ? "What are all the special magic numbers for"
                     : keys.size() == 1 ? "What is the special magic number for"
                                        : "What are the special magic numbers for";
  return fmt::format("\nQuestion: {} {}?\nAnswer:", form, list_text(keys));
}

std::vector<std::string> answer_items(const std::vector<statement>& asked, bool all_of_one) {
  std::vector<std::string> items;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const bool last = i + 1 == asked.size();
    // The numbers of one key are a list of their own, and the space before a number belongs to what it
    // follows.
    std::string item = !all_of_one || i == 0 ? fmt::format(" {} is ", asked[i].key) : "";
    item += asked[i].value;
    item += last ? ".\n" : all_of_one ? ", " : ",";
    items.push_back(std::move(item));
  }
  return items;
}

text_part text_part_from(const std::string& text) {
  text_part part;
  const auto colon = text.find(':');
  std::size_t first = 0, second = 0;
  try {
    part.begin = std::stod(text.substr(0, colon), &first);
    part.end = std::stod(text.substr(colon == std::string::npos ? text.size() : colon + 1), &second);
  } catch (const std::logic_error&) {
    second = std::string::npos;
  }
  if (first != colon || second != text.size() - colon - 1 ||
      !(part.begin >= 0 && part.begin < part.end && part.end <= 1))
    throw std::invalid_argument(fmt::format("{}: a part of a text is A:B with 0 <= A < B <= 1", text));
  return part;
}

haystack::haystack(const tokenizer& words, const std::string& text_path, const std::string& words_path,
                   const text_part& part)
    : words_(words), path_(text_path) {
  read_words(words_path);
  text_ = words_.encode(read_file(text_path));
  const auto at = [&](double fraction) {
    return text_.begin() + static_cast<std::ptrdiff_t>(fraction * static_cast<double>(text_.size()));
  };
  text_ = std::vector<token_id>(at(part.begin), at(part.end));
  for (std::size_t i = 1; i < text_.size(); ++i) {
    if (is_sentence_end(i)) sentence_ends_.push_back(i);
  }
  if (sentence_ends_.empty()) throw std::runtime_error(fmt::format("{}: holds no sentences", text_path));
}

void haystack::read_words(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  std::string kind, word;
  while (file >> kind >> word) {
    if (kind != "adjective" && kind != "noun") {
      throw std::runtime_error(fmt::format("{}: {} is neither adjective nor noun", path, kind));
    }
    const bool adjective = kind == "adjective";
    // A key follows a space, its noun a hyphen: what must be one token differs by the space.
    if (words_.encode(adjective ? " " + word : word).size() != 1) {
      throw std::runtime_error(fmt::format("{}: {} is more than one token of this model", path, word));
    }
    (adjective ? adjectives_ : nouns_).push_back(word);
  }
  // Enough that drawing different keys, none of them in the text, ends.
  if (adjectives_.size() < 16 || nouns_.size() < 16) {
    throw std::runtime_error(fmt::format("{}: fewer than 16 adjectives or nouns", path));
  }
}

/// Behind a full stop, and before a space: a token that begins with one begins a word of the tokenizer, so
/// text spliced in between two tokens here is cut into the same tokens again.
bool haystack::is_sentence_end(std::size_t at) const {
  const std::string& before = words_.piece(text_[at - 1]);
  const std::string& after = words_.piece(text_[at]);
  if (after.empty() || after.front() != ' ') return false;
  const auto mark = before.find_last_not_of("\"')");
  return mark != std::string::npos && std::string_view(".!?").find(before[mark]) != std::string_view::npos;
}

haystack::passage haystack::choose_passage(draw& random, std::size_t tokens) const {
  const std::size_t count = sentence_ends_.size();
  const std::size_t first = random.below(count);
  for (const bool whole : {true, false}) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t begin = sentence_ends_[(first + i) % count];
      const std::size_t end = begin + tokens;
      if (end >= text_.size()) continue;
      if (whole ? is_sentence_end(end) : words_.piece(text_[end]).front() == ' ') return {begin, end};
    }
  }
  throw std::runtime_error(
      fmt::format("{}: no passage of {} tokens; the text has {}", path_, tokens, text_.size()));
}

std::span<const std::size_t> haystack::places(std::size_t begin, std::size_t end) const {
  const auto low = std::lower_bound(sentence_ends_.begin(), sentence_ends_.end(), begin);
  const auto high = std::lower_bound(low, sentence_ends_.end(), end);
  return {sentence_ends_.data() + (low - sentence_ends_.begin()), static_cast<std::size_t>(high - low)};
}

std::vector<statement> haystack::choose_statements(draw& random, std::size_t count, passage where) const {
  const std::string text =
      words_.decode(std::span<const token_id>(text_.data() + where.begin, text_.data() + where.end));
  std::set<std::string> taken;
  const auto fresh = [&](auto&& make) {
    for (int attempt = 0; attempt < 100000; ++attempt) {
      std::string made = make();
      if (!contains(text, made) && taken.insert(made).second) return made;
    }
    throw std::runtime_error(fmt::format("{}: no {} keys are left that it does not hold", path_, count));
  };
  std::vector<statement> statements(count);
  for (statement& s : statements) {
    s.key = fresh([&] { return random.one_of(adjectives_) + "-" + random.one_of(nouns_); });
    s.value = fresh([&] { return fmt::format("{:07}", random.below(10'000'000)); });
  }
  return statements;
}

void splice(const haystack& from, haystack::passage where, const std::vector<std::size_t>& places,
            std::vector<statement>& statements, std::vector<token_id>& ids) {
  const auto copy = [&](std::size_t begin, std::size_t end) {
    for (std::size_t at = begin; at < end; ++at) ids.push_back(from.text()[at]);
  };
  std::size_t at = where.begin;
  for (std::size_t i = 0; i < statements.size(); ++i) {
    copy(at, places[i]);
    at = std::max(at, places[i]);
    statements[i].position = ids.size();
    append(ids, from.words().encode(statements[i].sentence()));
  }
  copy(at, where.end);
}

}  // namespace tinylm
