// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <cmath>

#include "select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::served_sequence;

namespace {

class stopwatch {
 public:
  double seconds() const noexcept {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Whether more evidence is lost than the policy allows.
bool drops_too_much(const fallback_policy& fallback, const selection_plan& plan) noexcept {
  return plan.above > 0 && static_cast<double>(plan.above_dropped) >
                               double{fallback.max_dropped} * static_cast<double>(plan.above);
}

fallback_stage after(fallback_stage stage) noexcept {
  return stage == fallback_stage::normal ? fallback_stage::widened : fallback_stage::everything;
}

fallback_stage before(fallback_stage stage) noexcept {
  return stage == fallback_stage::everything ? fallback_stage::widened : fallback_stage::normal;
}

}  // namespace

std::int64_t selector::impl::steps_to_first_refresh(const served_sequence& s) const noexcept {
  const std::int64_t interval = s.policy.interval;
  if (!options.stagger) return interval;
  // With equal intervals some step among the first max_sequences is free; the bound is for mixed ones.
  const std::int64_t furthest = std::min<std::int64_t>(interval, 4096);
  std::int64_t best_steps = interval, least = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t early = 0; early < furthest && least > 0; ++early) {
    const std::int64_t steps = interval - early;
    std::int64_t load = 0;
    for (const auto& other : pool) {
      if (!other->active || !other->started || other.get() == &s ||
          other->policy.mode == selection_mode::everything)
        continue;
      // One that is due now, later in this batch, comes again after its whole interval.
      std::int64_t next = other->next_due - other->processed;
      if (next <= 0) next = other->policy.interval;
      load += steps >= next && (steps - next) % other->policy.interval == 0;
    }
    if (load < least) {
      least = load;
      best_steps = steps;
    }
  }
  return best_steps;
}

/// Chunks that a recall may pin: the open chunk and one interval's growth, or the newest chunks of a piece of
/// a prompt, need slots beside them, or the next tokens would find none.
std::int64_t selector::impl::slots_for_recall(const served_sequence& s) const noexcept {
  if (s.quota >= geometry.chunks_for(s.max_tokens)) return s.quota;
  const std::int64_t forced = std::int64_t{s.policy.sink_chunks} + s.policy.recent_chunks;
  const std::int64_t growth =
      std::max<std::int64_t>(geometry.chunks_for(s.policy.interval), s.policy.recent_chunks);
  return std::max(s.quota - 1 - growth, forced);
}

std::int64_t selector::impl::stage_budget(const served_sequence& s, fallback_stage stage,
                                          std::int64_t chunks) const noexcept {
  const std::int64_t budget = budget_chunks(s.policy, geometry, chunks);
  if (stage == fallback_stage::normal) return budget;
  if (stage == fallback_stage::everything) return chunks;
  const double wide = std::nearbyint(double{s.policy.fallback.widen_factor} * static_cast<double>(budget));
  const std::int64_t limit = std::min(chunks, slots_for_recall(s));
  return std::max(budget, wide < static_cast<double>(limit) ? static_cast<std::int64_t>(wide) : limit);
}

selection_plan selector::impl::plan_with_fallback(served_sequence& s, std::int64_t chunks,
                                                  std::int64_t* budget) noexcept {
  const view<const float, 1> chunk_scores(scores.data, chunks);
  const view<const std::uint8_t, 1> now(s.policy.hysteresis > 0 ? resident.data : nullptr, chunks);
  const auto plan_for = [&](fallback_stage stage) {
    *budget = stage_budget(s, stage, chunks);
    return plan_selection(s.policy, chunk_scores, now, *budget, kept, order);
  };

  const fallback_policy& fallback = s.policy.fallback;
  const bool little_mass = s.mass < fallback.min_attention_mass;
  selection_plan plan = plan_for(s.stage);
  if (s.stage != fallback_stage::everything && (little_mass || drops_too_much(fallback, plan))) {
    s.calm = 0;
    if (++s.calls < fallback.patience) return plan;
    s.calls = 0;
    s.stage = after(s.stage);
    ++counters.widened;
    counters.everything += s.stage == fallback_stage::everything;
    return plan_for(s.stage);
  }
  s.calls = 0;
  if (s.stage == fallback_stage::normal) return plan;
  // Going back makes sense only if the smaller budget would not call for this stage again at once.
  if (little_mass || drops_too_much(fallback, plan_for(before(s.stage)))) {
    s.calm = 0;
  } else if (++s.calm >= fallback.recover_after) {
    s.calm = 0;
    s.stage = before(s.stage);
    ++counters.recovered;
  }
  return plan_for(s.stage);
}

status selector::impl::mark_resident(const served_sequence& s, std::int64_t chunks) noexcept {
  resident_set set;
  if (const status code = store.resident(s.handle, 0, &set); code != status::ok)
    return store_failed(code, s.handle, "resident");
  std::fill_n(resident.data, chunks, std::uint8_t{0});
  for (std::int64_t i = 0; i < set.count; ++i)
    if (set.chunks[i].id < chunks) resident.data[set.chunks[i].id] = 1;
  return status::ok;
}

status selector::impl::score(served_sequence& s, std::int64_t chunks) noexcept {
  const std::int64_t newest = s.processed - 1;
  for (std::size_t tap = 0; tap < source_of_tap.size(); ++tap) {
    const auto source = static_cast<std::size_t>(source_of_tap[tap]);
    if (!s.queries[source].has(newest)) {
      fault f;
      f.code = status::hidden_missing;
      f.sequence = s.handle.index;
      f.layer = query_sources[source].layer;
      f.expected = newest;
      f.actual = s.queries[source].end - 1;
      f.what = query_sources[source].kind == tap_kind::hidden ? "observe" : "observe_queries";
      return fail(f);
    }
    tap_rows[tap] = s.queries[source].row(newest);
  }
  if (chunks == 0) return status::ok;
  score_request request;
  request.store = &store;
  request.sequence = s.handle;
  request.position = newest;
  request.chunks = chunks;
  request.queries = tap_rows.data();
  const status code =
      index.score(request, view<float, 1>(scores.data, chunks), scratch, options.threads, stream_ref::host());
  if (code != status::ok) return fail(code, s.handle, "score");
  scored_chunks = chunks;
  return status::ok;
}

status selector::impl::refresh(served_sequence& s, refresh_reason reason) noexcept {
  scored_chunks = 0;
  sequence_info info;
  if (const status code = store.info(s.handle, &info); code != status::ok)
    return store_failed(code, s.handle, "info");
  if (info.tokens != s.processed) {
    fault f;
    f.code = status::out_of_order;
    f.sequence = s.handle.index;
    f.expected = info.tokens;
    f.actual = s.processed;
    f.what = "tokens of an item and tokens in the store";
    return fail(f);
  }
  const std::int64_t chunks = info.complete_chunks;
  if (chunks > max_chunks) return fail(status::out_of_range, s.handle, "complete chunks");

  selection_report next;
  next.reason = reason;
  next.position = s.processed - 1;
  next.complete_chunks = chunks;
  next.refreshes = s.report.refreshes + 1;
  // The stage moves only together with the resident set.
  const fallback_stage stage = s.stage;
  const std::int32_t calls = s.calls, calm = s.calm;
  const selector_counters counted = counters;

  if (s.policy.mode == selection_mode::everything) {
    next.budget = chunks;
    next.plan = plan_selection(s.policy, view<const float, 1>(nullptr, chunks), {}, chunks, kept, order);
  } else {
    const stopwatch watch;
    if (const status code = score(s, chunks); code != status::ok) return code;
    if (s.policy.hysteresis > 0)
      if (const status code = mark_resident(s, chunks); code != status::ok) return code;
    if (chunks > 0) next.plan = plan_with_fallback(s, chunks, &next.budget);
    next.score_seconds = watch.seconds();
  }

  const stopwatch watch;
  const std::int64_t asked = std::min(next.plan.chunks, slots_for_recall(s));
  if (asked == chunks && info.resident_chunks >= geometry.chunks_for(info.tokens)) {
    next.recall.selected = next.recall.hits = chunks;
  } else if (const status code = store.recall(s.handle, view<const chunk_id, 1>(kept.data, asked),
                                              &next.recall, stream_ref::host());
             code != status::ok) {
    s.stage = stage;
    s.calls = calls;
    s.calm = calm;
    counters = counted;
    return store_failed(code, s.handle, "recall");
  }
  next.recall.selected += next.plan.chunks - asked;
  next.recall.refused += next.plan.chunks - asked;
  next.recall_seconds = watch.seconds();
  next.stage = s.stage;
  s.report = next;
  s.mass = std::numeric_limits<float>::infinity();
  ++counters.refreshes;
  counters.nan_scores += next.plan.nan_scores;
  return status::ok;
}

status selector::impl::step(batch items) noexcept {
  std::int64_t tokens = 0;
  if (const status code = check_items(items, &tokens); code != status::ok) return code;
  ++counters.steps;
  bool any_due = false;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    served_sequence& s = *find(items(i).sequence);
    s.processed = items(i).position + items(i).num_tokens;
    // Gone back by a whole interval: the set in force was chosen for another continuation.
    if (s.processed <= s.refreshed - s.policy.interval) s.next_due = s.processed;
    any_due = any_due || !s.started || s.requested || s.processed >= s.next_due;
  }
  if (!any_due) return status::ok;

  status first = status::ok;
  fault first_fault;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    served_sequence& s = *find(items(i).sequence);
    if (s.started && !s.requested && s.processed < s.next_due) continue;
    const refresh_reason reason = s.report.refreshes == 0 ? refresh_reason::warm_start
                                  : s.requested           ? refresh_reason::requested
                                                          : refresh_reason::interval;
    const status code = refresh(s, reason);
    if (code != status::ok) {
      ++counters.refreshes_failed;
      if (first == status::ok) {
        first = code;
        first_fault = last_fault;
      }
    }
    s.next_due = s.processed + (s.started ? s.policy.interval : steps_to_first_refresh(s));
    s.started = true;
    s.requested = false;
    s.refreshed = s.processed;
  }
  if (first != status::ok) last_fault = first_fault;
  return first;
}

status select_chunks(selector& select, batch items, stream_ref) noexcept { return select.impl_->step(items); }

}  // namespace v0
}  // namespace flashmemory
