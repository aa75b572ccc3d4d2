// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

namespace llama_flashmemory {

/// A text file's paragraphs: what lies between empty lines.
/// \throws std::runtime_error naming the file: not there, or without a paragraph
std::vector<std::string> read_paragraphs(const std::string& path);

/// A number that can be asked for.
struct needle {
  std::string key, number;
  std::string sentence() const { return "The special magic number for " + key + " is " + number + "."; }
  std::string question() const { return "What is the special magic number for " + key + "?"; }
  std::string answer_start() const { return "The special magic number for " + key + " is"; }
};

/// The same `count` for the same seed, keys apart from each other; up to 24.
std::vector<needle> make_needles(int count, unsigned seed);

}  // namespace llama_flashmemory
