// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/record/document_source.hpp>
#include <vector>

#include "src/train/learn/examples.hpp"
#include "src/train/record/random.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Draws documents epoch by epoch, in an order that depends on seed and epoch alone, and windows of a document.
class sampler {
 public:
  /// Draws from the training split. \throws argument_error if it is empty
  sampler(const document_source& source, std::uint64_t seed);

  std::int64_t draw_document();
  /// At most `count` windows without repetition, of which `needing_share` need something where there are as many; < 0: uniformly.
  static std::vector<std::int64_t> draw_windows(const example& from, std::int64_t count, double needing_share,
                                                random_stream& random);

  const std::vector<std::int64_t>& documents() const noexcept { return documents_; }
  /// How many were drawn: all of its state.
  std::int64_t drawn = 0;

 private:
  std::uint64_t seed_;
  std::vector<std::int64_t> documents_;
  std::vector<std::int64_t> order_;
  std::int64_t order_epoch_ = -1;
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
