// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/status.hpp>

namespace flashmemory {
inline namespace v0 {

/// What a store tells of as it happens. Every kind has a running total in store_counters.
enum class store_event_kind : std::int32_t {
  recalled,           ///< a resident set was exchanged; bytes: of the chunks that were copied for it
  recall_late,        ///< finish_recall() found copies under way
  recall_failed,      ///< the old set stays; fault: why
  read_retried,       ///< a chunk's read failed and is tried again at once; fault: why
  chunk_unreadable,   ///< left out of a set; fault: which, and why
  chunk_bad,          ///< given up; fault: which, and why
  admission_refused,  ///< open() or fork() is about to throw admission_error
};

/// One event.
struct store_event {
  store_event_kind kind = store_event_kind::recalled;
  std::int64_t sequence = -1;  ///< sequence_handle::index
  std::size_t bytes = 0;
  fault why;  ///< code ok where nothing went wrong
};

/// How an engine hears of events, to log them or to feed its metrics. Called on the thread of the call that they happen
/// in, before it returns; must not throw, block, or call the store. Totals alone are cheaper: see counters().
struct store_event_hook {
  void* context = nullptr;
  void (*notify)(void* context, const store_event& event) = nullptr;
};

}  // namespace v0
}  // namespace flashmemory
