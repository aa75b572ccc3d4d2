// SPDX-License-Identifier: MIT
#include <algorithm>

#include "src/select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::flight_phase;
using detail::served_sequence;

namespace {

std::int64_t retry_after(const served_sequence& s) noexcept {
  return std::min<std::int64_t>(std::int64_t{1} << std::clamp(s.failures - 1, 0, 30), s.policy.interval);
}

}  // namespace

/// At most an interval, and a function of the prompt's length alone, so that a request's refreshes, and with them what it
/// generates, do not depend on what else is served. Multiples of the golden ratio spread neighbouring lengths evenly.
std::int64_t selector::impl::steps_to_first_refresh(const served_sequence& s) const noexcept {
  const std::int64_t interval = s.policy.interval;
  if (!options.stagger) return interval;
  const std::uint64_t turn = static_cast<std::uint64_t>(s.processed) * 0x9e3779b97f4a7c15u >> 32;
  return interval - static_cast<std::int64_t>(turn * static_cast<std::uint64_t>(interval) >> 32);
}

/// After each refresh. One that met something that may pass is tried again soon, and less and less soon.
void selector::impl::note_outcome(served_sequence& s, bool may_pass) noexcept {
  s.failures = may_pass ? s.failures + 1 : 0;
  if (!may_pass || !s.started) return;
  s.next_due = std::min(s.next_due, s.processed + retry_after(s));
}

bool selector::impl::is_due(const served_sequence& s) const noexcept {
  if (s.flight.phase != flight_phase::none) return false;
  if (s.open_prompt >= 0) return s.piece_due;
  return !s.started || s.requested || s.prompt_due || s.processed >= s.next_due;
}

refresh_reason selector::impl::reason_for(const served_sequence& s) const noexcept {
  if (s.open_prompt >= 0) return refresh_reason::prompt;
  if (!s.started || s.report.refreshes == 0) return refresh_reason::warm_start;
  if (s.prompt_due) return refresh_reason::prompt_end;
  return s.requested ? refresh_reason::requested : refresh_reason::interval;
}

/// Whether items come in an order that prompts can have.
status selector::impl::check_phases(batch items) noexcept {
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const batch_item& item = items(i);
    if (item.empty()) continue;
    const served_sequence& s = *find(item.sequence);
    const std::int64_t end = item.position + item.num_tokens;
    fault f;
    f.code = status::out_of_order;
    f.sequence = item.sequence.index;
    if (item.phase < item_phase::decode || item.phase > item_phase::prompt_end) {
      f.code = status::bad_argument;
      f.what = "phase";
      f.actual = static_cast<std::int64_t>(item.phase);
      return fail(f);
    }
    if (item.phase == item_phase::decode && s.open_prompt >= 0 && item.position > s.open_prompt) {
      f.what = "phase: the prompt has not ended";
      f.expected = static_cast<std::int64_t>(item_phase::prompt_end);
      return fail(f);
    }
    if (item.phase == item_phase::prompt_end && end == s.ended_prompt && end == s.processed) {
      f.what = "phase: the prompt has ended with this token before";
      f.actual = end;
      return fail(f);
    }
  }
  return status::ok;
}

void selector::impl::enter_phase(served_sequence& s, const batch_item& item) noexcept {
  if (item.phase == item_phase::prompt) {
    if (s.open_prompt < 0 || item.position < s.open_prompt) s.open_prompt = item.position;
    s.piece_due = s.policy.select_in_prompts;
  } else {
    s.open_prompt = -1;
    if (item.phase == item_phase::prompt_end) s.prompt_due = true;
  }
  if (s.ended_prompt > item.position) s.ended_prompt = -1;
}

void selector::impl::schedule_next(served_sequence& s) noexcept {
  const bool first = !s.started || s.prompt_due;
  s.next_due = s.processed + (first ? steps_to_first_refresh(s) : std::int64_t{s.policy.interval});
  const bool failed = s.flight.phase == flight_phase::none && s.report.position != s.processed - 1;
  if (s.prompt_due && !failed) s.ended_prompt = s.processed;
  if (s.failures > 0) s.next_due = std::min(s.next_due, s.processed + retry_after(s));
  s.piece_due = false;
  if (s.open_prompt < 0) {
    s.started = true;
    s.requested = s.prompt_due = false;
  }
  s.refreshed = s.processed;
}

status selector::impl::step(batch items, stream_ref stream) noexcept {
  std::int64_t tokens = 0;
  if (const status code = check_items(items, &tokens); code != status::ok) return code;
  if (const status code = check_phases(items); code != status::ok) return code;
  ++counters.steps;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    served_sequence& s = *find(items(i).sequence);
    if (s.policy.hold > 0) s.held.forget_from(items(i).position / geometry.tokens_per_chunk());
    enter_phase(s, items(i));
    s.processed = items(i).position + items(i).num_tokens;
    if (items(i).num_tokens <= newest_rows) s.step_tokens = items(i).num_tokens;
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
    counters.retries += s->failures > 0;
    if (launch(*s, reason_for(*s)) == status::ok && s->flight.phase == flight_phase::scoring)
      to_score.push_back(s);
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
      note_outcome(*s, detail::may_pass(s->flight.failure.code));
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
