// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace tinylm {

/// A sentence that gives a key a number, somewhere in a document.
struct needle {
  std::string key;
  std::string number;
  std::int64_t first_token = 0;  ///< in document::ids
  std::int64_t last_token = 0;
};

/// A text as the model reads it, with needles in it.
struct document {
  std::vector<token_id> ids;  ///< the beginning-of-sequence token first
  std::vector<needle> needles;
};

struct document_options {
  std::string text_path;
  std::string words_path;    ///< lines "adjective WORD" and "noun WORD": the halves of keys
  std::int64_t tokens = 0;   ///< at most, the needles' included; a text that is shorter is repeated
  std::int32_t needles = 0;  ///< one in each of as many parts of the text, between two sentences
  std::uint64_t seed = 1;
};

/// \throws std::runtime_error naming a file that cannot be read or does not fit
document make_document(const tokenizer& words, const document_options& options);

}  // namespace tinylm
