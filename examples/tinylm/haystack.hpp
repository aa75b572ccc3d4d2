// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace tinylm {

/// The standard fixes what engines give, not what distributions make of it; these are the same everywhere.
class draw {
 public:
  explicit draw(std::initializer_list<std::uint32_t> seed) {
    std::seed_seq mixed(seed);
    engine_.seed(mixed);
  }

  std::size_t below(std::size_t count) { return static_cast<std::size_t>(engine_() % count); }

  /// In [0, 1).
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

  template <class T>
  const T& one_of(const std::vector<T>& items) {
    return items[below(items.size())];
  }

  /// `count` different numbers below `total` in random order.
  std::vector<std::size_t> sample(std::size_t total, std::size_t count) {
    std::vector<std::size_t> all(total);
    for (std::size_t i = 0; i < total; ++i) all[i] = i;
    for (std::size_t i = 0; i < count; ++i) std::swap(all[i], all[i + below(total - i)]);
    all.resize(count);
    return all;
  }

 private:
  std::mt19937_64 engine_;
};

/// The two halves of a 64-bit seed, as a seed sequence takes them.
inline std::uint32_t low_half(std::uint64_t v) { return static_cast<std::uint32_t>(v); }
inline std::uint32_t high_half(std::uint64_t v) { return static_cast<std::uint32_t>(v >> 32); }

/// A sentence that gives a key a magic number ("needle").
struct statement {
  std::string key;
  std::string value;
  std::size_t position = 0;  ///< of its first token in the document

  std::string sentence() const;
};

/// "\nQuestion: ...?\nAnswer:" for one key, several, or all numbers of one.
std::string question_text(const std::vector<std::string>& keys, bool all_of_one = false);

/// The answer as the model was taught to write it, item by item; the last one ends with a newline. With
/// `all_of_one` all statements have one key, which is said once.
std::vector<std::string> answer_items(const std::vector<statement>& asked, bool all_of_one = false);

/// A stretch of a text as fractions of its tokens, so that one part can be trained on and another evaluated.
struct text_part {
  double begin = 0;
  double end = 1;
};

/// From "A:B", 0 <= A < B <= 1. \throws std::invalid_argument
text_part text_part_from(const std::string& text);

/// A text to hide sentences in, and the words that keys are made of.
class haystack {
 public:
  struct passage {
    std::size_t begin;
    std::size_t end;
  };

  /// `words_path` lists "adjective WORD" and "noun WORD", the halves of keys, each one token of the model.
  /// \throws std::runtime_error naming the file that cannot be read or does not fit
  haystack(const tokenizer& words, const std::string& text_path, const std::string& words_path,
           const text_part& part);

  const tokenizer& words() const noexcept { return words_; }
  const std::vector<token_id>& text() const noexcept { return text_; }
  std::string any_key() const { return adjectives_.front() + "-" + nouns_.front(); }

  /// From a sentence's start to a sentence's end if such a passage of that many tokens exists, else to a
  /// word's. \throws std::runtime_error if the text is too short
  passage choose_passage(draw& random, std::size_t tokens) const;

  /// Positions in [begin, end) of the text before which a sentence may be put.
  std::span<const std::size_t> places(std::size_t begin, std::size_t end) const;

  /// `count` statements whose keys and numbers occur neither in `where` nor twice.
  std::vector<statement> choose_statements(draw& random, std::size_t count, passage where) const;

 private:
  void read_words(const std::string& path);
  bool is_sentence_end(std::size_t at) const;

  const tokenizer& words_;
  std::string path_;
  std::vector<token_id> text_;
  std::vector<std::size_t> sentence_ends_;  ///< positions in text_ where a sentence may follow
  std::vector<std::string> adjectives_;
  std::vector<std::string> nouns_;
};

/// Appends the passage to `ids` with the statements, in their order, before the given places of the text
/// (ascending, one per statement), and notes their positions.
void splice(const haystack& from, haystack::passage where, const std::vector<std::size_t>& places,
            std::vector<statement>& statements, std::vector<token_id>& ids);

}  // namespace tinylm
