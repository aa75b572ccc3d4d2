// SPDX-License-Identifier: MIT
#include "src/train/learn/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <numeric>
#include <utility>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

void sample(const std::vector<std::int64_t>& from, std::int64_t count, random_stream& random,
            std::vector<std::int64_t>& out) {
  std::vector<std::int64_t> pool = from;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t pick = i + random.below(static_cast<std::int64_t>(pool.size()) - i);
    std::swap(pool[static_cast<std::size_t>(i)], pool[static_cast<std::size_t>(pick)]);
    out.push_back(pool[static_cast<std::size_t>(i)]);
  }
}

}  // namespace

sampler::sampler(const document_source& source, std::uint64_t seed) : seed_(seed) {
  const std::vector<document_info>& all = source.documents();
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].split == dataset_split::train) documents_.push_back(static_cast<std::int64_t>(i));
  }
  if (documents_.empty()) {
    throw argument_error(status::bad_argument,
                         formatted("none of {} documents is of the training split", all.size()));
  }
}

std::int64_t sampler::draw_document() {
  const auto count = static_cast<std::int64_t>(documents_.size());
  const std::int64_t epoch = drawn / count;
  if (epoch != order_epoch_) {
    order_.resize(static_cast<std::size_t>(count));
    std::iota(order_.begin(), order_.end(), 0);
    random_stream random(seed_, (std::uint64_t{1} << 62) + static_cast<std::uint64_t>(epoch));
    for (std::int64_t i = count - 1; i > 0; --i) {
      std::swap(order_[static_cast<std::size_t>(i)], order_[static_cast<std::size_t>(random.below(i + 1))]);
    }
    order_epoch_ = epoch;
  }
  return documents_[static_cast<std::size_t>(order_[static_cast<std::size_t>(drawn++ % count)])];
}

std::vector<std::int64_t> sampler::draw_windows(const example& from, std::int64_t count, double needing_share,
                                                random_stream& random) {
  const auto needing = static_cast<std::int64_t>(from.needing.size());
  const auto others = static_cast<std::int64_t>(from.free_ones.size());
  const std::int64_t total = std::min(count, needing + others);
  if (needing_share < 0) {
    std::vector<std::int64_t> both = from.needing;
    both.insert(both.end(), from.free_ones.begin(), from.free_ones.end());
    std::vector<std::int64_t> windows;
    sample(both, total, random, windows);
    return windows;
  }
  std::int64_t first =
      std::min<std::int64_t>(needing, std::llround(needing_share * static_cast<double>(total)));
  first = std::max(first, total - others);
  std::vector<std::int64_t> windows;
  sample(from.needing, first, random, windows);
  sample(from.free_ones, total - first, random, windows);
  return windows;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
