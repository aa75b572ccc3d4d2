// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::served_sequence;

namespace {

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

/// Chunks that a recall may pin: the open chunk and one interval's growth, or the newest chunks of a piece of
/// a prompt, need slots beside them, or the next tokens would find none.
std::int64_t selector::impl::slots_for_recall(const served_sequence& s) const noexcept {
  if (s.quota >= geometry.chunks_for(s.max_tokens)) return s.quota;
  const std::int64_t forced = std::int64_t{s.policy.sink_chunks} + s.policy.recent_chunks;
  // A set that comes into force late has to last for longer, and finds more chunks completed.
  const std::int64_t late =
      options.apply == apply_mode::at_once
          ? 0
          : std::min<std::int64_t>(std::int64_t{options.max_staleness} * s.step_tokens, s.policy.interval);
  const std::int64_t growth =
      std::max<std::int64_t>(geometry.chunks_for(s.policy.interval + late), s.policy.recent_chunks);
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
                                                  std::int64_t bad_count, std::int64_t* budget) noexcept {
  view<const float, 1> chunk_scores = scoring->scores(s);
  if (s.policy.hold > 0) {
    s.held.apply(chunk_scores, s.policy.hold, scoring->taps().log_odds, plain_scores.data);
    chunk_scores = view<const float, 1>(plain_scores.data, chunks);
  }
  if (bad_count > 0) {
    if (chunk_scores.data != plain_scores.data) std::copy_n(chunk_scores.data, chunks, plain_scores.data);
    for (std::int64_t i = 0; i < bad_count && bad(i) < chunks; ++i)
      plain_scores(bad(i)) = -std::numeric_limits<float>::infinity();
    chunk_scores = view<const float, 1>(plain_scores.data, chunks);
  }
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
    ++s.flight.widened;
    s.flight.everything += s.stage == fallback_stage::everything;
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
    ++s.flight.recovered;
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

/// What of the scored chunks is kept, `asked` chunks in `kept`. The store may have moved on since they were scored:
/// chunks that are no more are left out, and chunks completed since then, which nobody has scored, stay.
status selector::impl::make_plan(served_sequence& s, const sequence_info& info,
                                 std::int64_t* asked) noexcept {
  detail::refresh_flight& f = s.flight;
  const std::int64_t chunks = f.chunks;
  const std::int64_t bad_count = info.bad_chunks > 0 ? store.bad_chunks(s.handle, bad) : 0;
  if (s.policy.mode == selection_mode::everything) {
    f.report.budget = chunks;
    f.report.plan = plan_selection(s.policy, view<const float, 1>(nullptr, chunks), {}, chunks, kept, order);
  } else {
    if (s.policy.hysteresis > 0)
      if (const status code = mark_resident(s, chunks); code != status::ok) return code;
    if (chunks > 0) f.report.plan = plan_with_fallback(s, chunks, bad_count, &f.report.budget);
  }
  // Some policies keep chunks whatever their score.
  if (bad_count > 0)
    f.report.plan.chunks =
        std::remove_if(kept.data, kept.data + f.report.plan.chunks,
                       [&](chunk_id c) { return std::binary_search(bad.data, bad.data + bad_count, c); }) -
        kept.data;
  *asked = std::min(f.report.plan.chunks, slots_for_recall(s));
  if (info.complete_chunks < chunks)
    *asked =
        std::remove_if(kept.data, kept.data + *asked, [&](chunk_id c) { return c >= info.complete_chunks; }) -
        kept.data;
  for (std::int64_t c = chunks; c < info.complete_chunks; ++c) kept((*asked)++) = static_cast<chunk_id>(c);
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
