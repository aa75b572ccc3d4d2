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

/// Refusals running after which a chunk is given up. A checksum that is wrong twice in a row is enough.
constexpr std::int32_t most_failures = 3;

/// Whether a load failed because of the chunk, not of the tier or of the room in it.
bool costs_the_chunk(status code) noexcept {
  return code != status::cuda_error && code != status::timed_out && code != status::budget_exceeded;
}

}  // namespace

/// After a read that failed twice.
void tiered_chunk_store::impl::count_failure(chunk_record& record, const fault& f) noexcept {
  ++record.failures;
  if (record.bad || (f.code == status::io_error && record.failures < most_failures)) return;
  record.bad = true;
  ++bad_records;
  ++counters.chunks_bad;
  tell(store_event_kind::chunk_bad, f.sequence, f);
}

void tiered_chunk_store::impl::read_again(chunk_record& record) noexcept {
  bad_records -= record.bad;
  record.bad = false;
  record.failures = 0;
}

/// One chunk of a request that will not be in the set.
void tiered_chunk_store::impl::leave_out(recall_report& r, const chunk_record& record,
                                         const fault& f) noexcept {
  ++r.refused;
  ++r.unreadable;
  r.bad += record.bad;
  if (r.first_unreadable < 0) r.first_unreadable = static_cast<chunk_id>(f.chunk);
  note(f);
  tell(store_event_kind::chunk_unreadable, f.sequence, f);
}

/// Adds a copy of the record to the group of loads in progress. A read that fails is tried again once: what passes in a
/// moment should cost nobody anything.
fault tiered_chunk_store::impl::fetch(chunk_record& record, detail::fast_slot& slot, std::uint32_t sequence,
                                      std::int64_t chunk) noexcept {
  fault f = tier->load(record, slot);
  if (f.code != status::ok) f = of_chunk(f, sequence, chunk);
  if (f.code != status::ok && costs_the_chunk(f.code)) {
    ++counters.read_retries;
    tell(store_event_kind::read_retried, sequence, f);
    f = tier->load(record, slot);
    if (f.code != status::ok) f = of_chunk(f, sequence, chunk);
    if (f.code != status::ok && costs_the_chunk(f.code)) count_failure(record, f);
  }
  if (f.code == status::ok) read_again(record);
  return f;
}

/// The same into the record's slot, which it gets if it has none.
fault tiered_chunk_store::impl::load(chunk_record& record, std::uint32_t sequence,
                                     std::int64_t chunk) noexcept {
  const bool fresh = !record.slot;
  if (fresh && !slots.acquire(record))
    return of_chunk(make_fault(status::budget_exceeded, "no free slot", -1, 1, 0), sequence, chunk);
  const fault f = fetch(record, *record.slot, sequence, chunk);
  if (f.code != status::ok && fresh) slots.release(record);
  return f;
}

/// For calls that need at once what they load: ends the group and waits for it, then for what other sequences'
/// recalls are still loading of `list`. What had been lost was loaded again.
fault tiered_chunk_store::impl::settle(pinned_chunk* list, std::int64_t count) noexcept {
  std::uint64_t ticket = 0;
  fault f = tier->flush_loads(&ticket);
  if (f.code == status::ok) f = tier->await_loads(ticket);
  for (std::int64_t i = 0; f.code == status::ok && i < count; ++i) {
    chunk_record& record = *list[i].record;
    if (record.arrival == 0) continue;
    if (record.arrival != lost_arrival) f = tier->await_loads(record.arrival);
    if (f.code == status::ok) record.arrival = 0;
  }
  return f;
}

void tiered_chunk_store::impl::undo_loads(pinned_chunk* list, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i)
    if (list[i].loaded) slots.release(*list[i].record);
}

/// Slots that recalls under way hold beyond their sequences' quotas.
std::int64_t tiered_chunk_store::impl::slots_in_transit() const noexcept {
  std::int64_t total = 0;
  for (std::int32_t i = 0; i < options.max_sequences; ++i)
    if (places[i].state) total += places[i].state->coming_extra;
  return total;
}

fault tiered_chunk_store::impl::check_request(sequence_state& s, std::uint32_t sequence,
                                              const view<const chunk_id, 1>& chunks,
                                              std::uint32_t* requested) noexcept {
  const std::int64_t count = chunks.shape[0];
  if (count < 0) return make_fault(status::bad_shape, "chunks", sequence, 0, count);
  if (count > 0 && !chunks.data) return make_fault(status::null_data, "chunks", sequence);
  const std::int64_t complete = s.complete_chunks();
  *requested = s.fresh_mark();
  for (std::int64_t i = 0; i < count; ++i) {
    const chunk_id id = chunks(i);
    if (id < 0 || id >= complete)
      return of_chunk(make_fault(status::out_of_range, "chunks: not a complete chunk", -1, complete, id),
                      sequence, id);
    if (s.chunks[id].mark == *requested)
      return of_chunk(make_fault(status::bad_argument, "chunks: listed twice"), sequence, id);
    s.chunks[id].mark = *requested;
  }
  return {};
}

/// Pins what of the request gets a slot, and starts the copies. `alone`: the recall ends in this call, so it
/// may use every free slot; else all recalls under way share those beyond the quotas.
fault tiered_chunk_store::impl::begin_recall(sequence_state& s, std::uint32_t sequence,
                                             const view<const chunk_id, 1>& chunks, std::uint32_t requested,
                                             bool alone) noexcept {
  const std::int64_t count = chunks.shape[0], complete = s.complete_chunks();
  // Slabs may have more slots than open sequences need. They do not count, so that what is refused does not depend
  // on the tier.
  const std::int64_t spare_slots = slots.total() - slots_to_keep();
  std::int64_t room =
      alone ? slots.available() - spare_slots : transition_slots(nullptr) - slots_in_transit();
  recall_report r;
  r.selected = count;
  std::int64_t held = 0;  // of the new set
  for (std::int64_t i = 0; i < s.num_pinned; ++i) {
    const pinned_chunk& old = s.pinned[i];
    if (!s.always_resident(old.id, complete)) continue;
    ++held;
    if (old.id >= complete) continue;
    if (s.chunks[old.id].mark != requested) ++r.selected;
    ++r.hits;
  }
  // From here on the mark tells what is in the old set.
  const std::uint32_t old_set = s.fresh_mark();
  for (std::int64_t i = 0; i < s.num_pinned; ++i) s.chunks[s.pinned[i].id].mark = old_set;

  s.num_coming = s.coming_extra = 0;
  tier->begin_loads(alone);
  fault f;
  for (std::int64_t i = 0; f.code == status::ok && i < count; ++i) {
    const chunk_id id = chunks(i);
    chunk_record& record = *s.chunks[id].record;
    const bool forced = s.always_resident(id, complete);
    const bool present = record.slot && record.arrival != lost_arrival;
    const bool own = s.chunks[id].mark == old_set;
    // Alone, a chunk that another sequence has in the fast tier takes no slot; under way, it may be left to
    // this sequence.
    const bool takes_room = alone ? !record.slot : !own;
    if (!forced &&
        (held == s.quota || (takes_room && room <= 0) || (!record.slot && slots.available() == 0))) {
      ++r.refused;
      continue;
    }
    if (!present) {
      f = load(record, sequence, id);
      if (f.code != status::ok && costs_the_chunk(f.code) && !forced) {
        leave_out(r, record, f);
        f = {};
        continue;
      }
      if (f.code != status::ok) break;
      record.arrival = lost_arrival;  // until there is a ticket
    }
    ++record.pins;
    s.coming[s.num_coming++] = {&record, id, false, !present};
    if (!own) ++s.coming_extra;
    if (forced) continue;
    room -= takes_room;
    ++held;
    ++(present ? r.hits : r.recalled);
  }
  std::uint64_t ticket = 0;
  if (const fault flushed = tier->flush_loads(&ticket); f.code == status::ok) f = flushed;
  for (std::int64_t i = 0; i < s.num_coming; ++i)
    if (s.coming[i].loaded) s.coming[i].record->arrival = f.code == status::ok ? ticket : lost_arrival;
  s.recall_pending = true;
  s.coming_complete = complete;
  s.coming_report = r;
  if (f.code != status::ok) {
    release_coming(s);
    f.sequence = sequence;
  }
  return f;
}

/// What every call that changes a recall begins with.
fault tiered_chunk_store::impl::enter_recall(sequence_handle sequence, stream_ref stream,
                                             sequence_state** s) noexcept {
  const char* what;
  const status found = find(sequence, s, &what);
  if (found != status::ok) return make_fault(found, what, sequence.index);
  fault f = tier->enter(stream);
  f.sequence = sequence.index;
  return f;
}

status tiered_chunk_store::impl::refuse_recall(const fault& f) noexcept {
  ++counters.recalls_failed;
  tell(store_event_kind::recall_failed, f.sequence, f);
  return fail(f);
}

status tiered_chunk_store::impl::recall(sequence_handle sequence, view<const chunk_id, 1> chunks,
                                        recall_report* report, stream_ref stream) noexcept {
  sequence_state* s;
  fault f = enter_recall(sequence, stream, &s);
  if (f.code != status::ok) return refuse_recall(f);
  std::uint32_t requested;
  f = check_request(*s, sequence.index, chunks, &requested);
  if (f.code != status::ok) return refuse_recall(f);
  drop_recall(*s);
  f = begin_recall(*s, sequence.index, chunks, requested, true);
  if (f.code != status::ok) return refuse_recall(f);
  f = landed(*s, sequence.index);
  if (f.code == status::pending) {
    ++counters.recalls_waited;
    f = await(*s, sequence.index);
  }
  if (f.code == status::ok) f = tier->leave(stream);
  if (f.code != status::ok) {
    drop_recall(*s);
    f.sequence = sequence.index;
    return refuse_recall(f);
  }
  flip(*s, sequence.index, report);
  return status::ok;
}

status tiered_chunk_store::impl::start_recall(sequence_handle sequence, view<const chunk_id, 1> chunks,
                                              recall_report* report, stream_ref stream) noexcept {
  sequence_state* s;
  fault f = enter_recall(sequence, stream, &s);
  if (f.code != status::ok) return refuse_recall(f);
  if (s->recall_pending)
    return refuse_recall(make_fault(status::out_of_order, "a recall is under way", sequence.index));
  std::uint32_t requested;
  f = check_request(*s, sequence.index, chunks, &requested);
  if (f.code == status::ok) f = begin_recall(*s, sequence.index, chunks, requested, false);
  if (f.code != status::ok) return refuse_recall(f);
  f = tier->leave(stream);
  if (f.code != status::ok) {
    drop_recall(*s);
    f.sequence = sequence.index;
    return refuse_recall(f);
  }
  if (report) {
    *report = s->coming_report;
    report->bytes = report->recalled * static_cast<std::int64_t>(chunk_bytes);
  }
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
