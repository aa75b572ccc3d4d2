// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// How many of the scored chunks are kept.
enum class selection_mode : std::int32_t {
  everything,  ///< all chunks, without scoring
  budget,      ///< the best, until the budget is full
  threshold,   ///< those above the threshold, as far as the budget goes
};

/// When a selection would drop chunks that score above the threshold, widen the budget, and at last attend to
/// everything.
struct fallback_policy {
  float max_dropped = 1;  ///< share of above-threshold chunks that may be dropped; 1 = never widen for this
  float min_attention_mass =
      0;  ///< smallest attention mass reported to selector::report_attention_mass(); 0 = never widen for this
  float widen_factor = 2;          ///< of the budget at the first stage; the second stage is everything
  std::int32_t patience = 1;       ///< refreshes in a row that must call for it
  std::int32_t recover_after = 4;  ///< refreshes in a row without a call for it, then one stage back
};

/// The one object that decides what stays, for accuracy tables and speed tables alike.
///
/// Budgets count complete chunks: sink + recent + selected. The open chunk, and chunks completed before the
/// next refresh, come on top. Of several budgets the smallest holds. Order: score descending, then newer
/// chunk first; NaN last.
struct selection_policy {
  selection_mode mode = selection_mode::budget;
  std::int32_t interval = 64;      ///< tokens between two selections of a sequence (tau)
  std::int32_t sink_chunks = 1;    ///< first chunks, always kept
  std::int32_t recent_chunks = 2;  ///< newest complete chunks, always kept

  double budget_fraction = 0.135;  ///< of the complete chunks, rounded half to even; 0 = no such limit
  std::int64_t max_chunks = 0;     ///< 0 = no such limit
  std::size_t budget_bytes = 0;    ///< of K and V; 0 = no such limit
  std::int64_t min_chunks = 0;     ///< kept in threshold mode even when nothing passes

  float threshold =
      0;  ///< in score units: log-odds for trained indexers (0 = probability 0.5); kept if strictly above
  float hysteresis = 0;  ///< a resident chunk is kept down to threshold - hysteresis
  /// What a chunk keeps of its score from refresh to refresh, in [0, 1): it is selected by the larger of its new score and
  /// this share of the one it had, shares taken of probabilities where scores are log-odds. 0 = nothing
  float hold = 0;
  fallback_policy fallback;

  /// Select after every piece of a prompt too, so that the next piece attends to a budget (attend_reach::resident) instead
  /// of everything: for prompts that follow a long history.
  bool select_in_prompts = false;
};

/// Log-odds of a probability, for selection_policy::threshold.
FLASHMEMORY_API float log_odds(double probability) noexcept;

/// Throws argument_error naming the field that cannot work (negative extents, NaN, interval 0, budget below
/// sink + recent).
FLASHMEMORY_API void validate(const selection_policy& policy, const kv_geometry& geometry);

/// `policy` for a prompt of so many complete chunks: where a budget by fraction is too small for its recent chunks, with as
/// many as leave half of the budget to be chosen, but no less than 2 (or than were wanted).
FLASHMEMORY_API selection_policy fitted(const selection_policy& policy,
                                        std::int64_t complete_chunks) noexcept;

/// The sequence_options that serve `policy` for up to `max_tokens` tokens: the quota holds the largest budget
/// the policy can ask for (without fallback stages, which use what the quota has left), the open chunk and
/// one interval's growth; with mode everything there is none.
/// \param late_tokens  tokens beyond an interval that may come before the next set is in force: max_staleness steps'
///     in overlapped mode. Up to a chunk of them there is room anyway
FLASHMEMORY_API sequence_options sequence_options_for(const selection_policy& policy,
                                                      const kv_geometry& geometry, std::int64_t max_tokens,
                                                      std::int64_t late_tokens = 0);

/// Chunks in force for a given number of complete chunks: sink + recent + selected, before fallback.
FLASHMEMORY_API std::int64_t budget_chunks(const selection_policy& policy, const kv_geometry& geometry,
                                           std::int64_t complete_chunks) noexcept;

/// What plan_selection() found.
struct selection_plan {
  std::int64_t chunks = 0;         ///< written to `kept`: sink, recent and selected
  std::int64_t candidates = 0;     ///< complete chunks that are neither sink nor recent
  std::int64_t above = 0;          ///< candidates above the threshold (hysteresis included)
  std::int64_t above_dropped = 0;  ///< of those, not kept for lack of budget
  std::int64_t nan_scores = 0;     ///< candidates whose score is NaN
};

/// Applies a policy to scores. A pure function: same inputs, same chunks, on every backend. Forced chunks are
/// kept whatever the budget; with mode everything all are, and scores are not read.
/// \param[in]  scores    [complete chunks]; data may be null with mode everything
/// \param[in]  resident  [complete chunks], nonzero = resident now (for hysteresis); data null = none
/// \param      budget    chunks that may be kept in all, e.g. budget_chunks()
/// \param[out] kept      [complete chunks] room; the first plan.chunks: forced ones ascending, then the
/// selected ones by
///                       importance, best first
/// \param      order     [complete chunks] scratch
FLASHMEMORY_API selection_plan plan_selection(const selection_policy& policy, view<const float, 1> scores,
                                              view<const std::uint8_t, 1> resident, std::int64_t budget,
                                              view<chunk_id, 1> kept, view<chunk_id, 1> order) noexcept;

}  // namespace v0
}  // namespace flashmemory
