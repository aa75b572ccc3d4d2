// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "haystack.hpp"
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

struct made_task {
  task_record record;
  std::string gold;  ///< the answer as the model was taught to write it, up to the newline
};

/// One line of a task file, without the newline. \throws std::runtime_error if the text is not UTF-8
std::string to_json_line(const made_task& task);

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
  haystack text_;
  std::uint64_t seed_;
};

}  // namespace tinylm
