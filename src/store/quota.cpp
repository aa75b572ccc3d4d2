// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/error.hpp>
#include <utility>

#include "src/core/format.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::chunk_record;
using detail::pinned_chunk;
using detail::sequence_state;

// Not in the header, so that consumers without exceptions can read it.
void chunk_store::set_quota(sequence_handle, std::int64_t) {
  throw error(status::unsupported, "chunk_store::set_quota: this store's quotas do not change");
}

/// A copy of a sequence's books whose lists have room for another quota, and the slots for it. The lists of chunks that are
/// pinned are empty.
sequence_state* tiered_chunk_store::impl::with_quota(sequence_state& s, const sequence_options& wanted) {
  const bool whole = wanted.max_resident_chunks == 0;
  const std::int64_t quota = whole ? s.capacity : std::min(wanted.max_resident_chunks, s.capacity);
  const std::size_t tables = detail::sequence_block_bytes(geometry, quota, s.capacity);
  // The transition pool as it will be: without this sequence as it is, and with it as it shall be.
  const bool was_whole = std::exchange(s.whole, true);
  sequence_state shape;
  shape.options = wanted;
  shape.quota = quota;
  shape.whole = whole;
  const std::int64_t transition = std::max(transition_slots(&shape), slots_in_transit());
  s.whole = was_whole;
  const std::int64_t target = quota_sum - s.quota + quota + transition;
  const std::int64_t new_slots = std::max<std::int64_t>(target - slots.total(), 0);

  void* block = nullptr;
  const auto take = [&] {
    block = fast.allocate(tables, 64);
    if (block && slots.grow_to(target)) return true;
    fast.release(block, tables, 64);
    slots.trim_to(slots_to_keep());
    return false;
  };
  bool taken = take();
  if (!taken && !tier->host_memory()) {
    reclaim();
    taken = take();
  }
  if (!taken)
    refuse_admission(formatted(
        "the fast tier has no room for a quota of {} chunks instead of {}: {} new slots (transition "
        "pool of {} slots) x {} bytes = {} + {} bytes of tables, {} in use of {}{}",
        quota, s.quota, new_slots, transition, slots.slot_bytes(), slots.bytes_for(new_slots), tables,
        fast.in_use(), fast.budget(), tier->allocation_failure()));
  sequence_state* const to = detail::make_sequence(block, geometry, wanted, quota, s.capacity);
  to->tokens = s.tokens;
  to->num_chunks = to->pending_chunks = s.num_chunks;
  std::copy_n(s.chunks, s.capacity, to->chunks);
  to->mark = s.mark;
  to->batch_mark = s.batch_mark;
  to->set_version = s.set_version;
  to->keys = s.keys;
  to->key_bytes = s.key_bytes;
  std::copy_n(s.num_keys, geometry.index_keys.lanes, to->num_keys);
  to->guard = s.guard;
  to->table_bytes = tables;
  return to;
}

void tiered_chunk_store::impl::set_quota(sequence_handle sequence, std::int64_t max_resident_chunks) {
  sequence_state* s;
  const char* what;
  const status found = find(sequence, &s, &what);
  if (found != status::ok)
    throw error(found, formatted("set_quota: {}: index {}, generation {}", what, sequence.index,
                                 sequence.generation));
  if (s->in_span())
    throw argument_error(
        status::out_of_order,
        formatted("set_quota: sequence {} is in the middle of a forward pass, layer {} is next",
                  sequence.index, s->next_layer));
  sequence_options wanted = s->options;
  wanted.max_resident_chunks = max_resident_chunks;
  check_options(wanted);
  drop_recall(*s);
  sequence_state* const to = with_quota(*s, wanted);

  const std::int64_t complete = s->complete_chunks();
  // What goes: from the oldest on those that nobody selected, then those that somebody did.
  std::int64_t surplus = s->num_pinned - to->quota;
  const auto goes = [&](const pinned_chunk& p, bool selected) {
    return surplus > 0 && p.selected == selected && !to->always_resident(p.id, complete);
  };
  std::int64_t next = 0;
  std::copy_n(s->pinned, s->num_pinned, s->spare);
  std::int64_t kept = s->num_pinned;
  for (const bool selected : {false, true}) {
    std::int64_t at = 0;
    for (std::int64_t i = 0; i < kept; ++i) {
      if (goes(s->spare[i], selected))
        --surplus;
      else
        s->spare[at++] = s->spare[i];
    }
    kept = at;
  }
  for (std::int64_t i = 0; i < kept; ++i) {
    to->spare[next] = s->spare[i];
    to->spare[next++].loaded = false;
  }
  fault f;
  if (to->whole) {  // everything comes
    const std::uint32_t there = to->fresh_mark();
    for (std::int64_t i = 0; i < next; ++i) to->chunks[to->spare[i].id].mark = there;
    tier->begin_loads(true);
    for (std::int64_t id = 0; f.code == status::ok && id < to->num_chunks; ++id) {
      chunk_record& record = *to->chunks[id].record;
      if (to->chunks[id].mark == there) continue;
      const bool present = record.slot && record.arrival != detail::lost_arrival;
      const bool fresh = !record.slot;
      if (!present) f = load(record, sequence.index, id);
      if (f.code == status::ok) to->spare[next++] = {&record, static_cast<chunk_id>(id), false, fresh};
    }
    if (const fault settled = settle(to->spare, next); f.code == status::ok) f = settled;
  }
  if (f.code != status::ok) {
    undo_loads(to->spare, next);
    fast.release(to, to->table_bytes, 64);
    slots.trim_to(slots_to_keep());
    static_cast<void>(fail(f));
    throw error(f.code, formatted("set_quota: sequence {}: {}", sequence.index, describe(f)));
  }
  std::sort(to->spare, to->spare + next,
            [](const pinned_chunk& a, const pinned_chunk& b) { return a.id < b.id; });
  for (std::int64_t i = 0; i < next; ++i) ++to->spare[i].record->pins;
  for (std::int64_t i = 0; i < s->num_pinned; ++i) {
    chunk_record& record = *s->pinned[i].record;
    if (--record.pins == 0) slots.release(record);
  }
  std::swap(to->pinned, to->spare);
  to->num_pinned = next;
  quota_sum += to->quota - s->quota;
  places[sequence.index].state = to;
  refresh_views(*to);
  fast.release(s, s->table_bytes, 64);
  slots.trim_to(slots_to_keep());
}

}  // namespace v0
}  // namespace flashmemory
