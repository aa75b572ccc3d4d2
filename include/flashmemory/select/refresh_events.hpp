// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

struct selection_report;

/// What a selector tells of a refresh as it happens.
enum class refresh_event_kind : std::int32_t {
  chosen,    ///< scores are there, and what is wanted: the recall is about to start
  in_force,  ///< the new set is what attention reads
  given_up,  ///< it was chosen and will not come into force: a fault, a rollback, too late
};

/// One event. What it points to is valid until the hook returns.
struct refresh_event {
  refresh_event_kind kind = refresh_event_kind::chosen;
  sequence_handle sequence;
  /// As far as the refresh got: `recall`, `stage` and `staleness` are known once it is in force.
  const selection_report* report = nullptr;
  /// chosen: the indexer's scores [report->complete_chunks], before selection_policy::hold; none under the policy
  /// `everything`.
  view<const float, 1> scores;
  /// chosen: what the recall is asked for: chunks that are always kept, then by falling score, then what was completed
  /// while the scores were made.
  view<const chunk_id, 1> wanted;
};

/// How an engine hears of refreshes, to show them or to measure an indexer; see selection_trace. Called on the thread of
/// select_chunks(), detach() or the destructor, before it returns; must not throw, nor call anything of the store or the
/// selector that is not const.
struct refresh_event_hook {
  void* context = nullptr;
  void (*notify)(void* context, const refresh_event& event) = nullptr;
};

}  // namespace v0
}  // namespace flashmemory
