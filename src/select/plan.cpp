// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/select/policy.hpp>

namespace flashmemory {
inline namespace v0 {

namespace {

/// The order of importance: a total order, so that any correct sort gives the same chunks.
struct more_important {
  view<const float, 1> scores;

  bool operator()(chunk_id a, chunk_id b) const noexcept {
    const float x = scores(a), y = scores(b);
    if (x > y) return true;
    if (x < y) return false;
    const bool x_is_number = !std::isnan(x), y_is_number = !std::isnan(y);
    if (x_is_number != y_is_number) return x_is_number;
    return a > b;
  }
};

/// Brings the `count` most important of [first, last) to its front, best first.
void best_first(chunk_id* first, chunk_id* last, std::int64_t count, const more_important& order) noexcept {
  if (first + count < last) std::nth_element(first, first + count, last, order);
  std::sort(first, first + count, order);
}

}  // namespace

selection_plan plan_selection(const selection_policy& policy, view<const float, 1> scores,
                              view<const std::uint8_t, 1> resident, std::int64_t budget,
                              view<chunk_id, 1> kept, view<chunk_id, 1> order) noexcept {
  selection_plan plan;
  const std::int64_t n = scores.shape[0];
  if (n <= 0 || kept.shape[0] < n || kept.data == nullptr) return plan;

  const std::int64_t sinks = std::min<std::int64_t>(std::max(policy.sink_chunks, 0), n);
  const std::int64_t first_recent =
      std::max(sinks, n - std::min<std::int64_t>(std::max(policy.recent_chunks, 0), n));
  plan.candidates = first_recent - sinks;
  const std::int64_t forced = n - plan.candidates;

  const auto keep = [&](std::int64_t chunk) { kept(plan.chunks++) = static_cast<chunk_id>(chunk); };
  for (std::int64_t c = 0; c < sinks; ++c) keep(c);
  for (std::int64_t c = first_recent; c < n; ++c) keep(c);
  if (policy.mode == selection_mode::everything) {
    for (std::int64_t c = first_recent; c-- > sinks;) keep(c);
    return plan;
  }
  if (plan.candidates == 0 || scores.data == nullptr || order.data == nullptr || order.stride[0] != 1 ||
      order.shape[0] < plan.candidates)
    return plan;

  const float relaxed = policy.threshold - policy.hysteresis;
  const auto passes = [&](chunk_id c) {
    const float score = scores(c);
    return score > policy.threshold || (resident.data != nullptr && resident(c) != 0 && score > relaxed);
  };
  chunk_id* const first = order.data;
  chunk_id* const last = first + plan.candidates;
  chunk_id* front = first;  // passing candidates grow from the front, the others from the back
  chunk_id* back = last;
  for (std::int64_t c = sinks; c < first_recent; ++c) {
    const auto id = static_cast<chunk_id>(c);
    plan.nan_scores += std::isnan(scores(c));
    if (passes(id))
      *front++ = id;
    else
      *--back = id;
  }
  plan.above = front - first;

  const more_important importance{scores};
  const std::int64_t room = std::min(std::max<std::int64_t>(budget - forced, 0), plan.candidates);
  std::int64_t take = room;
  if (policy.mode == selection_mode::budget) {
    best_first(first, last, take, importance);
    plan.above_dropped = std::count_if(first + take, last, passes);
  } else {
    const std::int64_t wanted = std::min(std::max<std::int64_t>(policy.min_chunks - forced, 0), room);
    take = std::max(std::min(plan.above, room), wanted);
    if (take <= plan.above) {
      best_first(first, front, take, importance);
      plan.above_dropped = plan.above - take;
    } else {
      best_first(front, last, take - plan.above, importance);
      std::sort(first, first + take, importance);
    }
  }
  for (std::int64_t i = 0; i < take; ++i) keep(first[i]);
  return plan;
}

}  // namespace v0
}  // namespace flashmemory
