// SPDX-License-Identifier: MIT
#include "src/select/held_scores.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace flashmemory {
inline namespace v0 {
namespace detail {

namespace {

constexpr float nothing = -std::numeric_limits<float>::infinity();

}  // namespace

float decayed_score(float score, float hold, bool log_odds) noexcept {
  if (!log_odds) return score > 0 ? hold * score : nothing;
  // log p of log-odds z; far below 0 it is z itself, where exp(-z) would not be finite.
  const double z = static_cast<double>(score);
  const double log_p = z < -40 ? z : -std::log1p(std::exp(-z));
  const double left = log_p + std::log(static_cast<double>(hold));
  return static_cast<float>(left - std::log1p(-std::exp(left)));
}

void held_scores::reserve(const memory_resource& memory, std::int64_t chunks) {
  if (chunks > capacity_) {
    block_layout plan;
    plan.add<float>(chunks);
    const std::size_t next_at = plan.add<float>(chunks);
    memory_ = buffer(memory, plan.bytes(), "held scores of a sequence");
    now_ = memory_.as<float>();
    next_ = reinterpret_cast<float*>(memory_.as<std::byte>() + next_at);
    capacity_ = chunks;
  }
  forget_from(0);
  pending_ = false;
}

void held_scores::forget_from(std::int64_t chunk) noexcept {
  count_ = std::min(count_, chunk);
  next_count_ = std::min(next_count_, chunk);
}

void held_scores::apply(view<const float, 1> scores, float hold, bool log_odds, float* out) noexcept {
  const std::int64_t chunks = std::min(scores.shape[0], capacity_);
  for (std::int64_t c = 0; c < chunks; ++c) {
    const float fresh = scores(c);
    const float left = c < count_ ? decayed_score(now_[c], hold, log_odds) : nothing;
    next_[c] = std::isnan(fresh) ? left : std::max(fresh, left);
    out[c] = std::isnan(fresh) ? fresh : next_[c];
  }
  next_count_ = chunks;
  pending_ = true;
}

void held_scores::commit() noexcept {
  if (!pending_) return;
  std::swap(now_, next_);
  count_ = next_count_;
  pending_ = false;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
