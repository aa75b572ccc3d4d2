// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "task_file.hpp"
#include "tokenizer.hpp"

namespace tinylm {

/// Retrieval tasks after RULER: sentences that give keys a magic number ("needles") lie in a text, and a
/// question at its end asks for some of them.
enum class task_kind {
  niah_single,      ///< one needle
  niah_multikey,    ///< many needles, one asked
  niah_multiquery,  ///< some needles, four asked
  niah_multivalue,  ///< some needles, and one key with four numbers, all asked
  list16,           ///< many needles, sixteen asked
  context_free,     ///< many needles, asked is the one right before the question: nothing old is needed
};

std::span<const task_kind> all_task_kinds() noexcept;
std::string_view to_string(task_kind kind) noexcept;

/// \throws std::invalid_argument for a name of no kind
task_kind task_kind_from(std::string_view name);

/// Where an item of the gold answer comes from. Token ranges, the ends excluded; prompt positions count the
/// beginning-of-sequence token.
struct evidence {
  std::int64_t answer_begin = 0;
  std::int64_t answer_end = 0;
  std::int64_t prompt_begin = 0;
  std::int64_t prompt_end = 0;
};

struct made_task {
  task_record record;
  std::string gold;            ///< the answer as the model was taught to write it, up to the newline
  std::vector<evidence> need;  ///< one per answer, in the order of the answers
};

/// One line of a task file, without the newline. \throws std::runtime_error if the text is not UTF-8
std::string to_json_line(const made_task& task);

/// A stretch of a text as fractions of its tokens, so that one part can be trained on and another evaluated.
struct text_part {
  double begin = 0;
  double end = 1;
};

/// From "A:B", 0 <= A < B <= 1. \throws std::invalid_argument
text_part text_part_from(const std::string& text);

/// Makes tasks over a text, or a part of it. A task is a function of text, part, words, seed, kind, length and index
/// alone.
class task_maker {
 public:
  /// Tokens that a task leaves of its length for the answer.
  static constexpr std::int64_t answer_room = 256;

  /// `words_path` lists "adjective WORD" and "noun WORD", the halves of keys, each one token of the model.
  /// \throws std::runtime_error naming the file that cannot be read or does not fit
  task_maker(const tokenizer& words, const std::string& text_path, const std::string& words_path,
             std::uint64_t seed, const text_part& part = {});

  /// Prompt of exactly `length - answer_room` tokens; if `odd`, of a random number, no multiple of 64, that
  /// is up to a quarter lower. \throws std::runtime_error if the length is too short for the kind or too long
  /// for the text
  made_task make(task_kind kind, std::int64_t length, std::int64_t index, bool odd = false) const;

 private:
  struct passage {
    std::size_t begin;
    std::size_t end;
  };
  class draw;
  struct statement;

  void read_words(const std::string& path);
  passage choose_passage(draw& random, std::size_t tokens) const;
  bool is_sentence_end(std::size_t at) const;
  std::vector<statement> choose_statements(draw& random, std::size_t count, const std::string& text) const;
  std::vector<token_id> splice(draw& random, passage where, std::vector<statement>& statements,
                               bool last_at_end) const;

  const tokenizer& words_;
  std::string text_path_;
  std::vector<token_id> text_;
  std::vector<std::size_t> sentence_ends_;  ///< positions in text_ where a sentence may follow
  std::vector<std::string> adjectives_;
  std::vector<std::string> nouns_;
  std::uint64_t seed_;
};

}  // namespace tinylm
