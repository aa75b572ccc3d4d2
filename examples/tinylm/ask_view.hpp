// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "document.hpp"
#include "generate.hpp"
#include "memory.hpp"
#include "terminal.hpp"

namespace tinylm {

/// An answer under one policy, as far as it is there.
struct answer_state {
  const policy_cell* cell = nullptr;
  const run_record* run = nullptr;
  const std::vector<const needle*>* expected = nullptr;  ///< empty if the right answer is not known
  int right = 0;                                         ///< of the expected numbers, how many were given
  std::vector<flashmemory::chunk_id> resident;
};

/// Draws what `tinylm ask` shows. On a terminal an answer's two lines are drawn over as it grows; elsewhere
/// they are written once.
class ask_view {
 public:
  ask_view(std::int32_t label_width, bool terminal);

  void question(std::size_t number, std::size_t count, const std::string& text);

  /// Redraws at most every few hundredths of a second.
  void growing(const answer_state& answer);
  void finished(const answer_state& answer);

 private:
  std::string text_line(const answer_state& answer, bool done, int width) const;
  std::string state_line(const answer_state& answer) const;

  style look_;
  std::int32_t label_width_;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

/// A strip of `width` cells for `chunks` chunks: '#' where all of a cell's chunks are resident, '+' where
/// some are,
/// '.' where none is.
std::string resident_strip(const std::vector<flashmemory::chunk_id>& resident, std::int64_t chunks,
                           int width);

/// The same strip with '^' below the chunks of `needles`, blanks before and between.
std::string needle_strip(const std::vector<const needle*>& needles, std::int64_t tokens_per_chunk,
                         std::int64_t chunks, int width);

/// Columns of the terminal, 100 where there is none.
int terminal_columns() noexcept;

}  // namespace tinylm
