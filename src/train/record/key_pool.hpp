// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/view.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Hidden states of one layer as they pass, and the averages that key encoders see: key s of a stream is the
/// mean of the `window` tokens that end with token (s + 1) * tokens_per_key - 1, rows before the start being
/// zero, added up from the oldest in f32 and then divided, as selector::observe() hands them to the indexer.
class key_pool {
 public:
  /// Serves streams with windows of up to `largest_window` tokens.
  key_pool(std::int64_t width, std::int64_t largest_window);

  std::int64_t width() const noexcept { return width_; }
  /// Tokens that have passed.
  std::int64_t tokens() const noexcept { return tokens_; }

  /// Writes the averages that `rows`, the next tokens, complete, as floats [keys, width].
  std::vector<float> pooled(const std::vector<float>& rows, std::int64_t tokens_per_key,
                            std::int64_t window) const;

  /// Lets `rows` [count, width] pass.
  void advance(const std::vector<float>& rows);

 private:
  std::int64_t width_;
  std::int64_t kept_;  ///< rows before the next token that a window may reach
  std::int64_t tokens_ = 0;
  std::vector<float> tail_;  ///< [kept, width], the last tokens, zeros before the start
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
