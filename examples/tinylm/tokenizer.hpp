// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tinylm {

using token_id = std::int32_t;

/// Byte-level BPE: ids 0..255 are bytes, then merges in rank order, special tokens last.
///
/// Text is first cut, byte by byte from the left, into: a digit alone; a newline, return or tab alone; a run
/// of letters (A-Z, a-z, bytes from 128 on) or a run of any other bytes, either with the one space before it;
/// a space alone. Merges never cross these cuts.
class tokenizer {
 public:
  /// \throws std::runtime_error naming the file if it cannot be read or is not a byte_bpe tokenizer
  explicit tokenizer(const std::string& path);

  /// Without the beginning-of-sequence token.
  std::vector<token_id> encode(std::string_view text) const;

  /// Special tokens become nothing; bytes are passed through, whether or not they are valid UTF-8.
  std::string decode(std::span<const token_id> ids) const;

  const std::string& piece(token_id id) const { return pieces_.at(static_cast<std::size_t>(id)); }
  token_id bos() const noexcept { return bos_; }
  token_id eos() const noexcept { return eos_; }
  token_id newline() const noexcept { return '\n'; }
  std::int32_t size() const noexcept { return static_cast<std::int32_t>(pieces_.size()); }

 private:
  const std::vector<token_id>& encode_word(std::string_view word) const;

  std::vector<std::string> pieces_;
  std::unordered_map<std::uint64_t, token_id> ranks_;  ///< pair of ids -> id of their merge
  mutable std::unordered_map<std::string, std::vector<token_id>> cache_;
  token_id bos_ = 0;
  token_id eos_ = 0;
};

}  // namespace tinylm
