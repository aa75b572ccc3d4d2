// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "haystack.hpp"
#include "task_file.hpp"

namespace tinylm {

/// What sessions are made of.
struct session_options {
  std::vector<std::int32_t> asks{1, 2, 4, 8, 16, 16};  ///< keys of a question, each as likely as the others
  double multivalue = 0.12;    ///< share of the questions that ask for all numbers of one key
  double context_free = 0.08;  ///< share whose sentence stands right before the question
};

/// A document as a long conversation leaves it: prose with many needles, then question after question, with
/// prose between them. No needle is asked about twice.
struct session {
  std::vector<token_id> ids;  ///< exactly as long as wanted, the last answer cut short if need be
  /// Tokens [begin, end) whose outputs are an answer: from the question's last token on.
  struct answer {
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };
  std::vector<answer> answers;
  /// Tokens answer_begin.. are computed with the sentence prompt_begin..; both count from the document's start.
  std::vector<evidence> need;
};

/// Makes sessions over a text. A session is a function of text, words, options, seed, length and index alone.
class session_maker {
 public:
  /// \param text  kept by reference
  /// \throws std::invalid_argument for options that cannot work
  session_maker(const haystack& text, const session_options& options, std::uint64_t seed);

  /// \throws std::runtime_error if the length is below 1024 or too long for the text
  session make(std::int64_t length, std::int64_t index) const;

 private:
  class builder;

  const haystack& text_;
  session_options options_;
  std::uint64_t seed_;
};

}  // namespace tinylm
