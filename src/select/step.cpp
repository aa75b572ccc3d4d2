// SPDX-License-Identifier: MIT
#include <algorithm>
#include <limits>

#include "src/select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::flight_phase;
using detail::served_sequence;

/// At most an interval, on a step on which as few others as possible are due, and of those as far from theirs as
/// possible: what refreshes that overlap with steps share, copies above all, is then used evenly.
std::int64_t selector::impl::steps_to_first_refresh(const served_sequence& s) const noexcept {
  const std::int64_t interval = s.policy.interval;
  if (!options.stagger) return interval;
  // With equal intervals some step among the first max_sequences is free; the bound is for mixed ones.
  const std::int64_t furthest = std::min<std::int64_t>(interval, 4096);
  std::int64_t best_steps = interval, least = std::numeric_limits<std::int64_t>::max(), widest = -1;
  for (std::int64_t early = 0; early < furthest; ++early) {
    const std::int64_t steps = interval - early;
    std::int64_t load = 0, gap = interval;
    for (const auto& other : pool) {
      if (!other->active || !other->started || other.get() == &s ||
          other->policy.mode == selection_mode::everything)
        continue;
      // One that is due now, later in this batch, comes again after its whole interval.
      const std::int64_t period = other->policy.interval;
      std::int64_t next = other->next_due - other->processed;
      if (next <= 0) next = period;
      const std::int64_t after = ((steps - next) % period + period) % period;
      load += steps >= next && after == 0;
      gap = std::min({gap, after, period - after});
    }
    if (load < least || (load == least && gap > widest)) {
      least = load;
      widest = gap;
      best_steps = steps;
    }
  }
  return best_steps;
}

bool selector::impl::is_due(const served_sequence& s) const noexcept {
  return s.flight.phase == flight_phase::none && (!s.started || s.requested || s.processed >= s.next_due);
}

void selector::impl::schedule_next(served_sequence& s) noexcept {
  s.next_due = s.processed + (s.started ? s.policy.interval : steps_to_first_refresh(s));
  s.started = true;
  s.requested = false;
  s.refreshed = s.processed;
}

status selector::impl::step(batch items, stream_ref stream) noexcept {
  std::int64_t tokens = 0;
  if (const status code = check_items(items, &tokens); code != status::ok) return code;
  ++counters.steps;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    served_sequence& s = *find(items(i).sequence);
    s.processed = items(i).position + items(i).num_tokens;
    if (items(i).num_tokens <= query_rows) s.step_tokens = items(i).num_tokens;
    // Gone back by a whole interval: the set in force was chosen for another continuation.
    if (s.processed <= s.refreshed - s.policy.interval) {
      s.next_due = s.processed;
      abandon(s, false);
    }
    if (s.flight.phase != flight_phase::none) ++s.flight.steps;
  }

  status first = status::ok;
  fault first_fault;
  const auto note = [&](status code) {
    if (code == status::ok || first != status::ok) return;
    first = code;
    first_fault = last_fault;
  };
  if (!under_way.empty()) note(advance_all(stream));

  due.clear();
  to_score.clear();
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    served_sequence& s = *find(items(i).sequence);
    if (is_due(s)) due.push_back(&s);
  }
  if (due.empty()) {
    if (first != status::ok) last_fault = first_fault;
    return first;
  }
  // One launch scores all that can be scored; what cannot is failed in its turn below.
  for (served_sequence* const s : due) {
    const refresh_reason reason = s->report.refreshes == 0 ? refresh_reason::warm_start
                                  : s->requested           ? refresh_reason::requested
                                                           : refresh_reason::interval;
    if (launch(*s, reason) == status::ok && s->flight.phase == flight_phase::scoring) to_score.push_back(s);
  }
  if (!to_score.empty()) {
    fault f;
    const status code =
        scoring->start(view<served_sequence* const, 1>(to_score.data(), to_score.size()), stream, &f);
    if (code != status::ok)
      for (served_sequence* const s : to_score) {
        if (code != status::pending) s->flight.failure = f;
        under_way.erase(std::find(under_way.begin(), under_way.end(), s));
        s->flight.phase = flight_phase::none;
      }
  }
  for (served_sequence* const s : due) {
    last_scores = {};
    if (s->flight.phase != flight_phase::none) {
      note(advance(*s, options.apply == apply_mode::at_once, stream));
    } else if (s->flight.failure.code == status::ok) {
      continue;  // not started, so it is due in the next step as well
    } else {
      ++counters.refreshes_failed;
      note(fail(s->flight.failure));
    }
    schedule_next(*s);
  }
  if (first != status::ok) last_fault = first_fault;
  return first;
}

status select_chunks(selector& select, batch items, stream_ref stream) noexcept {
  return select.impl_->step(items, stream);
}

}  // namespace v0
}  // namespace flashmemory
