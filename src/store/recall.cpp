// SPDX-License-Identifier: MIT
#include <algorithm>
#include <utility>

#include "store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::chunk_record;
using detail::make_fault;
using detail::pinned_chunk;
using detail::sequence_state;

fault tiered_chunk_store::impl::load(chunk_record& record, std::uint32_t sequence,
                                     std::int64_t chunk) noexcept {
  if (!slots.acquire(record))
    return detail::of_chunk(make_fault(status::budget_exceeded, "no free slot", -1, 1, 0), sequence, chunk);
  const fault f = tier->load(record, record.slot->data);
  if (f.code == status::ok) return f;
  slots.release(record);
  return detail::of_chunk(f, sequence, chunk);
}

void tiered_chunk_store::impl::undo_loads(pinned_chunk* list, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i)
    if (list[i].loaded) slots.release(*list[i].record);
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

status tiered_chunk_store::impl::recall(sequence_handle sequence, view<const chunk_id, 1> chunks,
                                        recall_report* report, stream_ref stream) noexcept {
  const auto refuse = [&](const fault& f) {
    ++counters.recalls_failed;
    return fail(f);
  };
  sequence_state* s;
  const char* what;
  const status found = find(sequence, &s, &what);
  if (found != status::ok) return refuse(make_fault(found, what, sequence.index));
  if (fault f = tier->enter(stream); f.code != status::ok) {
    f.sequence = sequence.index;
    return refuse(f);
  }
  const std::int64_t count = chunks.shape[0];
  if (count < 0) return refuse(make_fault(status::bad_shape, "chunks", sequence.index, 0, count));
  if (count > 0 && !chunks.data) return refuse(make_fault(status::null_data, "chunks", sequence.index));

  const std::int64_t complete = s->complete_chunks();
  const std::uint32_t requested = s->fresh_mark();
  for (std::int64_t i = 0; i < count; ++i) {
    const chunk_id id = chunks(i);
    if (id < 0 || id >= complete) {
      fault f =
          make_fault(status::out_of_range, "chunks: not a complete chunk", sequence.index, complete, id);
      f.chunk = id;
      return refuse(f);
    }
    if (s->chunks[id].mark == requested) {
      fault f = make_fault(status::bad_argument, "chunks: listed twice", sequence.index);
      f.chunk = id;
      return refuse(f);
    }
    s->chunks[id].mark = requested;
  }

  recall_report r;
  r.selected = count;
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < s->num_pinned; ++i) {
    const pinned_chunk& old = s->pinned[i];
    if (!s->always_resident(old.id, complete)) continue;
    s->spare[next++] = {old.record, old.id, false, false};
    if (old.id >= complete) continue;
    if (s->chunks[old.id].mark != requested) ++r.selected;
    ++r.hits;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const chunk_id id = chunks(i);
    if (s->always_resident(id, complete)) continue;
    chunk_record& record = *s->chunks[id].record;
    const bool present = record.slot != nullptr;
    if (next == s->quota || (!present && slots.available() == 0)) {
      ++r.refused;
      continue;
    }
    if (!present) {
      const fault f = load(record, sequence.index, id);
      if (f.code != status::ok) {
        undo_loads(s->spare, next);
        return refuse(f);
      }
    }
    s->spare[next++] = {&record, id, false, !present};
    ++(present ? r.hits : r.recalled);
  }
  if (fault f = tier->leave(stream); f.code != status::ok) {
    undo_loads(s->spare, next);
    f.sequence = sequence.index;
    return refuse(f);
  }
  std::sort(s->spare, s->spare + next,
            [](const pinned_chunk& a, const pinned_chunk& b) { return a.id < b.id; });
  r.evicted = exchange(*s, next);
  s->recalled_chunks = complete;
  r.bytes = r.recalled * static_cast<std::int64_t>(chunk_bytes);
  refresh_views(*s);
  ++counters.recalls;
  counters.selected += r.selected;
  counters.hits += r.hits;
  counters.recalled += r.recalled;
  counters.refused += r.refused;
  counters.bytes_recalled += r.bytes;
  if (report) *report = r;
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
