// SPDX-License-Identifier: MIT
#include <algorithm>

#include "src/select/host_level1.hpp"
#include "src/select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::flight_phase;
using detail::refresh_flight;
using detail::served_sequence;

std::int32_t selector::impl::recalls_under_way() const noexcept {
  std::int32_t count = 0;
  for (const served_sequence* s : under_way) count += s->flight.phase == flight_phase::recalling;
  return count;
}

void selector::impl::tell(const served_sequence& s, refresh_event_kind kind,
                          std::int64_t wanted) const noexcept {
  if (!options.events.notify) return;
  refresh_event event;
  event.kind = kind;
  event.sequence = s.handle;
  event.report = kind == refresh_event_kind::in_force ? &s.report : &s.flight.report;
  if (kind == refresh_event_kind::chosen) {
    if (s.policy.mode != selection_mode::everything && s.flight.chunks > 0) event.scores = scoring->scores(s);
    event.wanted = view<const chunk_id, 1>(kept.data, wanted);
  }
  options.events.notify(options.events.context, event);
}

/// Starts the refresh of a sequence as far as the books go. On error `flight.failure` says why and there is none.
status selector::impl::launch(served_sequence& s, refresh_reason reason) noexcept {
  s.flight = refresh_flight{};
  const auto refuse = [&](status code) {
    s.flight.failure = last_fault;
    return code;
  };
  sequence_info info;
  if (const status code = store.info(s.handle, &info); code != status::ok)
    return refuse(store_failed(code, s.handle, "info"));
  if (info.tokens != s.processed) {
    fault f;
    f.code = status::out_of_order;
    f.sequence = s.handle.index;
    f.expected = info.tokens;
    f.actual = s.processed;
    f.what = "tokens of an item and tokens in the store";
    return refuse(fail(f));
  }
  s.quota = detail::quota_of(info, geometry);  // which may have changed
  const std::int64_t chunks = info.complete_chunks, newest = s.processed - 1;
  if (chunks > max_chunks) return refuse(fail(status::out_of_range, s.handle, "complete chunks"));
  const bool scores = s.policy.mode != selection_mode::everything;
  for (std::size_t source = 0; scores && source < query_sources.size(); ++source) {
    if (s.queries[source].has(newest)) continue;
    fault f;
    f.code = status::hidden_missing;
    f.sequence = s.handle.index;
    f.layer = query_sources[source].layer;
    f.expected = newest;
    f.actual = s.queries[source].end - 1;
    f.what = detail::call_of(query_sources[source].kind);
    return refuse(fail(f));
  }

  s.held.drop_pending();
  s.held.forget_from(chunks);
  refresh_flight& f = s.flight;
  f.phase = scores && chunks > 0 ? flight_phase::scoring : flight_phase::scored;
  f.position = newest;
  f.chunks = chunks;
  f.stage = s.stage;
  f.calls = s.calls;
  f.calm = s.calm;
  f.report.reason = reason;
  f.report.position = newest;
  f.report.complete_chunks = chunks;
  f.report.refreshes = s.report.refreshes + 1;
  under_way.push_back(&s);
  return status::ok;
}

/// The new set is in force.
void selector::impl::land(served_sequence& s) noexcept {
  refresh_flight& f = s.flight;
  f.report.recall.selected += f.cut;
  f.report.recall.refused += f.cut;
  f.report.recall_seconds = f.watch.seconds();
  f.report.stage = s.stage;
  f.report.staleness = f.steps;
  s.report = f.report;
  s.held.commit();
  s.mass = std::numeric_limits<float>::infinity();
  ++counters.refreshes;
  counters.unreadable += f.report.recall.unreadable;
  note_outcome(s, f.report.recall.unreadable > f.report.recall.bad);
  counters.nan_scores += f.report.plan.nan_scores;
  counters.widened += f.widened;
  counters.everything += f.everything;
  counters.recovered += f.recovered;
  counters.staleness += f.steps;
  counters.max_staleness = std::max(counters.max_staleness, f.steps);
  f.phase = flight_phase::none;
  under_way.erase(std::find(under_way.begin(), under_way.end(), &s));
  tell(s, refresh_event_kind::in_force);
}

/// The old set stays, and with it the stage, which moves only together with the set.
status selector::impl::crash(served_sequence& s, status code) noexcept {
  ++counters.refreshes_failed;
  note_outcome(s, detail::may_pass(code));
  s.stage = s.flight.stage;
  s.calls = s.flight.calls;
  s.calm = s.flight.calm;
  s.flight.phase = flight_phase::none;
  under_way.erase(std::find(under_way.begin(), under_way.end(), &s));
  if (s.flight.told) tell(s, refresh_event_kind::given_up);
  return code;
}

/// Forgets a refresh that has become pointless; with `again` the sequence is due at once.
void selector::impl::abandon(served_sequence& s, bool again) noexcept {
  if (s.flight.phase == flight_phase::none) return;
  if (s.flight.phase == flight_phase::recalling && store.is_open(s.handle))
    static_cast<void>(store.cancel_recall(s.handle));
  ++counters.abandoned;
  s.stage = s.flight.stage;
  s.calls = s.flight.calls;
  s.calm = s.flight.calm;
  s.flight.phase = flight_phase::none;
  under_way.erase(std::find(under_way.begin(), under_way.end(), &s));
  if (s.flight.told) tell(s, refresh_event_kind::given_up);
  if (again) s.next_due = s.processed;
}

/// Plans and starts the recall. At once, or when all that is wanted is there already, the new set is in force when it
/// returns.
status selector::impl::start_recall(served_sequence& s, bool at_once, stream_ref stream) noexcept {
  refresh_flight& f = s.flight;
  const detail::stopwatch planning;
  sequence_info info;
  if (const status code = store.info(s.handle, &info); code != status::ok)
    return crash(s, store_failed(code, s.handle, "info"));
  std::int64_t asked = 0;
  if (const status code = make_plan(s, info, &asked); code != status::ok) return crash(s, code);
  f.cut = f.report.plan.chunks - std::min(f.report.plan.chunks, slots_for_recall(s));
  f.report.score_seconds += planning.seconds();
  f.told = true;
  tell(s, refresh_event_kind::chosen, asked);

  f.watch = detail::stopwatch();
  if (asked == info.complete_chunks && info.resident_chunks >= geometry.chunks_for(info.tokens)) {
    f.report.recall.selected = f.report.recall.hits = asked;
    land(s);
    return status::ok;
  }
  const view<const chunk_id, 1> wanted(kept.data, asked);
  const auto start = [&] {
    return at_once ? store.recall(s.handle, wanted, &f.report.recall, stream)
                   : store.start_recall(s.handle, wanted, &f.report.recall, stream);
  };
  status code = start();
  if (code == status::out_of_order) {  // somebody else's, who may be gone
    static_cast<void>(store.cancel_recall(s.handle));
    code = start();
  }
  if (code != status::ok) return crash(s, store_failed(code, s.handle, "recall"));
  if (at_once)
    land(s);
  else
    f.phase = flight_phase::recalling;
  return status::ok;
}

/// Exchanges the set if the copies have landed. \returns ok also if they have not
status selector::impl::finish_recall(served_sequence& s, late_policy how, stream_ref stream) noexcept {
  const status code = store.finish_recall(s.handle, how, &s.flight.report.recall, stream);
  switch (code) {
    case status::ok:
      land(s);
      return code;
    case status::pending:
      return status::ok;
    case status::out_of_order:  // a rollback, or another sequence's need of its slots, has ended it
      abandon(s, true);
      return status::ok;
    case status::timed_out:
      if (how == late_policy::wait) return store_failed(code, s.handle, "recall");
      [[fallthrough]];
    default:
      return crash(s, store_failed(code, s.handle, "recall"));
  }
}

/// Waits for the recalls of other sequences, which have the transition pool.
status selector::impl::finish_others(const served_sequence& s, stream_ref stream) noexcept {
  for (std::size_t i = 0; i < under_way.size();) {
    served_sequence& other = *under_way[i];
    if (&other == &s || other.flight.phase != flight_phase::recalling) {
      ++i;
      continue;
    }
    if (const status code = finish_recall(other, late_policy::wait, stream); code != status::ok) return code;
    if (other.flight.phase == flight_phase::recalling) ++i;
  }
  return status::ok;
}

/// Whether the quota has slots for the tokens of another step, though nothing has left the set yet.
bool selector::impl::fits_a_step(const served_sequence& s) const noexcept {
  sequence_info info;
  if (store.info(s.handle, &info) != status::ok) return true;  // whatever is wrong, waiting does not mend it
  const std::int64_t more =
      geometry.chunks_for(info.tokens + s.step_tokens) - geometry.chunks_for(info.tokens);
  return info.resident_chunks + more <= s.quota;
}

/// Moves a refresh as far as it gets: at once to its end, else without blocking unless it is late and the policy is to
/// wait, or the next step would find the quota full.
status selector::impl::advance(served_sequence& s, bool at_once, stream_ref stream) noexcept {
  refresh_flight& f = s.flight;
  const bool late = !at_once && f.steps > options.max_staleness;
  const bool block =
      at_once ||
      (late && (options.late == late_policy::wait || (options.late == late_policy::keep && !fits_a_step(s))));
  const auto not_yet = [&] {
    if (late && !f.late) {
      f.late = true;
      ++counters.late;
    }
    if (!late || options.late != late_policy::fail) return status::ok;
    if (f.phase == flight_phase::recalling) return finish_recall(s, late_policy::fail, stream);
    fault lost;
    lost.code = status::timed_out;
    lost.sequence = s.handle.index;
    lost.expected = options.max_staleness;
    lost.actual = f.steps;
    lost.what = "the refresh is late";
    return crash(s, fail(lost));
  };
  const auto count_late = [&] {
    if (!late || f.late) return;
    f.late = true;
    ++counters.late;
  };

  if (f.phase == flight_phase::scoring) {
    fault why;
    status code = scoring->poll(s, &why);
    if (code == status::pending && block) {
      count_late();
      code = scoring->wait(s, &why);
    }
    if (code == status::pending) return not_yet();
    if (code == status::timed_out && !at_once) return fail(why);
    if (code != status::ok) return crash(s, fail(why));
    f.report.score_seconds = f.watch.seconds();
    f.phase = flight_phase::scored;
    last_scores = scoring->scores(s);
  }
  if (f.phase == flight_phase::scored) {
    if (!at_once && recalls_under_way() >= options.concurrent_recalls) {
      if (!block) return not_yet();
      count_late();
      if (const status code = finish_others(s, stream); code != status::ok) return code;
    }
    if (const status code = start_recall(s, at_once, stream); code != status::ok) return code;
    if (f.phase == flight_phase::none) return status::ok;
  }
  const status code = store.poll_recall(s.handle);
  if (code == status::pending) {
    if (!block) return not_yet();
    count_late();
  }
  return finish_recall(s, block ? late_policy::wait : late_policy::keep, stream);
}

status selector::impl::advance_all(stream_ref stream) noexcept {
  status first = status::ok;
  fault first_fault;
  for (std::size_t i = 0; i < under_way.size();) {
    served_sequence& s = *under_way[i];
    if (!store.is_open(s.handle)) {
      abandon(s, false);
      continue;
    }
    const status code = advance(s, false, stream);
    if (code != status::ok && first == status::ok) {
      first = code;
      first_fault = last_fault;
    }
    const auto at = std::find(under_way.begin(), under_way.end(), &s);
    if (at != under_way.end()) i = static_cast<std::size_t>(at - under_way.begin()) + 1;
  }
  if (first != status::ok) last_fault = first_fault;
  return first;
}

}  // namespace v0
}  // namespace flashmemory
