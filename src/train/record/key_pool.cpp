// SPDX-License-Identifier: MIT
#include "src/train/record/key_pool.hpp"

#include <algorithm>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

key_pool::key_pool(std::int64_t width, std::int64_t largest_window)
    : width_(width),
      kept_(largest_window - 1),
      tail_(static_cast<std::size_t>((largest_window - 1) * width)) {}

std::vector<float> key_pool::pooled(const std::vector<float>& rows, std::int64_t tokens_per_key,
                                    std::int64_t window) const {
  const std::int64_t count = static_cast<std::int64_t>(rows.size()) / width_;
  const std::int64_t first = tokens_ / tokens_per_key, end = (tokens_ + count) / tokens_per_key;
  std::vector<float> out(static_cast<std::size_t>((end - first) * width_));
  for (std::int64_t key = first; key < end; ++key) {
    float* const sum = out.data() + (key - first) * width_;
    const std::int64_t after = (key + 1) * tokens_per_key;
    for (std::int64_t token = after - window; token < after; ++token) {
      const float* row = token >= tokens_ ? rows.data() + (token - tokens_) * width_
                                          : tail_.data() + (token - tokens_ + kept_) * width_;
      for (std::int64_t i = 0; i < width_; ++i) sum[i] += row[i];
    }
    for (std::int64_t i = 0; i < width_; ++i) sum[i] /= static_cast<float>(window);
  }
  return out;
}

void key_pool::advance(const std::vector<float>& rows) {
  const std::int64_t count = static_cast<std::int64_t>(rows.size()) / width_;
  const std::int64_t from_rows = std::min(count, kept_), stay = kept_ - from_rows;
  std::copy_n(tail_.begin() + (kept_ - stay) * width_, stay * width_, tail_.begin());
  std::copy_n(rows.end() - from_rows * width_, from_rows * width_, tail_.begin() + stay * width_);
  tokens_ += count;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
