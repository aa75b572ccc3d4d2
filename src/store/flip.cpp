// SPDX-License-Identifier: MIT
#include <algorithm>

#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::chunk_record;
using detail::lost_arrival;
using detail::make_fault;
using detail::of_chunk;
using detail::pinned_chunk;
using detail::sequence_state;

namespace {

/// Ticket of the copies that `chunk` waits for; copies of a group have one.
std::uint64_t ticket_of(const pinned_chunk& chunk) noexcept { return chunk.record->arrival; }

}  // namespace

/// Whether everything that the sequence's recall needs is in its slots, copies that another sequence's recall
/// has started included.
fault tiered_chunk_store::impl::landed(sequence_state& s, std::uint32_t sequence) noexcept {
  std::uint64_t newest = 0;
  for (std::int64_t i = 0; i < s.num_coming; ++i) {
    const std::uint64_t ticket = ticket_of(s.coming[i]);
    if (ticket == lost_arrival) {  // in another sequence's recall, which has been given up
      drop_coming(s, sequence, i--);
      continue;
    }
    if (ticket == 0) continue;
    if (ticket != newest) {
      const fault f = tier->loaded(ticket);
      if (f.code != status::ok) return of_chunk(f, sequence, s.coming[i].id);
      newest = ticket;
    }
    s.coming[i].record->arrival = 0;
  }
  return {};
}

fault tiered_chunk_store::impl::await(sequence_state& s, std::uint32_t sequence) noexcept {
  for (std::int64_t i = 0; i < s.num_coming; ++i) {
    const std::uint64_t ticket = ticket_of(s.coming[i]);
    if (ticket == 0 || ticket == lost_arrival) continue;
    const fault f = tier->await_loads(ticket);
    if (f.code != status::ok) return of_chunk(f, sequence, s.coming[i].id);
    s.coming[i].record->arrival = 0;
  }
  return landed(s, sequence);
}

/// A chunk that the recall shared with another one, whose copy has failed, is left out.
void tiered_chunk_store::impl::drop_coming(sequence_state& s, std::uint32_t sequence,
                                           std::int64_t at) noexcept {
  const pinned_chunk lost = s.coming[at];
  std::copy(s.coming + at + 1, s.coming + s.num_coming, s.coming + at);
  --s.num_coming;
  --s.coming_extra;  // what is in the sequence's own set has landed long since
  --(lost.loaded ? s.coming_report.recalled : s.coming_report.hits);
  leave_out(s.coming_report, *lost.record,
            of_chunk(make_fault(status::io_error, "the copy of the chunk has failed"), sequence, lost.id));
  if (--lost.record->pins == 0) slots.release(*lost.record);
}

/// Takes the pins of the recall under way back. Slots that nobody else has pinned become free.
void tiered_chunk_store::impl::release_coming(sequence_state& s) noexcept {
  for (std::int64_t i = 0; i < s.num_coming; ++i)
    if (--s.coming[i].record->pins == 0) slots.release(*s.coming[i].record);
  s.num_coming = s.coming_extra = 0;
  s.recall_pending = false;
}

/// Gives the recall under way up, if there is one. A copy that has failed must stay known to other sequences
/// that have the chunk in a recall of theirs.
void tiered_chunk_store::impl::drop_recall(sequence_state& s) noexcept {
  if (!s.recall_pending) return;
  for (std::int64_t i = 0; i < s.num_coming; ++i) {
    chunk_record& record = *s.coming[i].record;
    if (record.arrival == 0 || record.arrival == lost_arrival) continue;
    const status code = tier->loaded(record.arrival).code;
    if (code == status::ok)
      record.arrival = 0;
    else if (code != status::pending)
      record.arrival = lost_arrival;
  }
  release_coming(s);
  ++counters.recalls_cancelled;
}

/// Gives up recalls until `wanted` slots are free, first the sequence's own.
void tiered_chunk_store::impl::make_room(sequence_state& s, std::int64_t wanted) noexcept {
  if (slots.available() < wanted) drop_recall(s);
  for (std::int32_t i = options.max_sequences - 1; i >= 0 && slots.available() < wanted; --i)
    if (places[i].state) drop_recall(*places[i].state);
}

/// Makes the first `count` elements of s.spare, ascending, the resident set. New pins come before old ones
/// go, so a chunk of both sets keeps its slot. \returns how many chunks lost their pin
std::int64_t tiered_chunk_store::impl::exchange(sequence_state& s, std::int64_t count) noexcept {
  const std::uint32_t mark = s.fresh_mark();
  for (std::int64_t i = 0; i < count; ++i) {
    ++s.spare[i].record->pins;
    s.spare[i].loaded = false;
    s.chunks[s.spare[i].id].mark = mark;
  }
  std::int64_t evicted = 0;
  for (std::int64_t i = 0; i < s.num_pinned; ++i) {
    chunk_record& record = *s.pinned[i].record;
    if (--record.pins == 0) slots.release(record);
    if (s.chunks[s.pinned[i].id].mark != mark) ++evicted;
  }
  std::swap(s.pinned, s.spare);
  s.num_pinned = count;
  return evicted;
}

/// Ends a recall whose copies have landed.
void tiered_chunk_store::impl::flip(sequence_state& s, std::uint32_t sequence,
                                    recall_report* report) noexcept {
  const std::int64_t complete = s.complete_chunks();
  const std::uint32_t named = s.fresh_mark();
  for (std::int64_t i = 0; i < s.num_coming; ++i) s.chunks[s.coming[i].id].mark = named;
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < s.num_pinned; ++i) {
    const pinned_chunk& old = s.pinned[i];
    if (old.id < s.coming_complete && !s.always_resident(old.id, complete)) continue;
    s.spare[next++] = {old.record, old.id, false, false, s.chunks[old.id].mark == named};
  }
  const std::uint32_t taken = s.fresh_mark();
  for (std::int64_t i = 0; i < next; ++i) s.chunks[s.spare[i].id].mark = taken;
  recall_report r = s.coming_report;
  for (std::int64_t i = 0; i < s.num_coming; ++i) {
    const pinned_chunk& asked = s.coming[i];
    if (s.chunks[asked.id].mark == taken) continue;
    if (next < s.quota) {
      s.spare[next++] = {asked.record, asked.id, false, false, true};
      continue;
    }
    --(asked.loaded ? r.recalled : r.hits);
    ++r.refused;
  }
  std::sort(s.spare, s.spare + next,
            [](const pinned_chunk& a, const pinned_chunk& b) { return a.id < b.id; });
  r.evicted = exchange(s, next);
  release_coming(s);
  refresh_views(s);
  r.bytes = r.recalled * static_cast<std::int64_t>(chunk_bytes);
  ++counters.recalls;
  counters.selected += r.selected;
  counters.hits += r.hits;
  counters.recalled += r.recalled;
  counters.refused += r.refused;
  counters.bytes_recalled += r.bytes;
  counters.chunks_unreadable += r.unreadable;
  tell(store_event_kind::recalled, sequence, {}, std::size_t(r.bytes));
  if (report) *report = r;
}

status tiered_chunk_store::impl::poll_recall(sequence_handle sequence) noexcept {
  status code;
  sequence_state* const s = find_or_fail(sequence, &code);
  if (!s) return code;
  const fault f = landed(*s, sequence.index);
  return f.code == status::ok || f.code == status::pending ? f.code : fail(f);
}

status tiered_chunk_store::impl::finish_recall(sequence_handle sequence, late_policy late,
                                               recall_report* report, stream_ref stream) noexcept {
  sequence_state* s;
  fault f = enter_recall(sequence, stream, &s);
  if (f.code != status::ok) return refuse_recall(f);
  if (late != late_policy::keep && late != late_policy::wait && late != late_policy::fail)
    return refuse_recall(
        make_fault(status::bad_argument, "late", sequence.index, -1, static_cast<int>(late)));
  if (!s->recall_pending)
    return refuse_recall(make_fault(status::out_of_order, "no recall is under way", sequence.index));
  f = landed(*s, sequence.index);
  if (f.code == status::pending) {
    ++counters.recalls_late;
    tell(store_event_kind::recall_late, sequence.index);
    if (late == late_policy::keep) return status::pending;
    if (late == late_policy::fail) {
      f.code = status::timed_out;
      f.what = "the recall is late";
    } else {
      ++counters.recalls_waited;
      f = await(*s, sequence.index);
      if (f.code == status::timed_out) return refuse_recall(f);
    }
  }
  if (f.code == status::ok) {
    f = tier->leave(stream);
    f.sequence = sequence.index;
  }
  if (f.code != status::ok) {
    drop_recall(*s);
    return refuse_recall(f);
  }
  flip(*s, sequence.index, report);
  return status::ok;
}

status tiered_chunk_store::impl::cancel_recall(sequence_handle sequence) noexcept {
  status code;
  sequence_state* const s = find_or_fail(sequence, &code);
  if (s) drop_recall(*s);
  return code;
}

}  // namespace v0
}  // namespace flashmemory
