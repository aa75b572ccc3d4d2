// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/error.hpp>

#include "src/core/format.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::chunk_record;
using detail::pinned_chunk;
using detail::sequence_state;

sequence_handle tiered_chunk_store::impl::fork(sequence_handle parent, const sequence_options& wanted) {
  sequence_state* from;
  const char* what;
  const status found = find(parent, &from, &what);
  if (found != status::ok)
    throw error(found, formatted("fork: {}: index {}, generation {}", what, parent.index, parent.generation));
  if (from->in_span())
    throw argument_error(status::out_of_order,
                         formatted("fork: sequence {} is in the middle of a forward pass, layer {} is next",
                                   parent.index, from->next_layer));
  if (wanted.max_tokens < from->tokens)
    throw argument_error(status::bad_argument,
                         formatted("fork: sequence_options::max_tokens is {}, but sequence {} has {} tokens",
                                   wanted.max_tokens, parent.index, from->tokens));
  std::uint32_t index;
  sequence_state* const s = admit(wanted, &index);
  const std::int64_t complete = from->complete_chunks();
  const std::int64_t chunks = from->num_chunks;

  // The child's resident set: what must be resident, then the parent's as far as the quota goes, newest
  // first.
  std::int64_t room = s->quota;
  for (std::int64_t id = 0; id < chunks; ++id)
    if (s->always_resident(id, complete)) --room;
  std::int64_t optional = 0;
  for (std::int64_t i = 0; i < from->num_pinned; ++i)
    if (!s->always_resident(from->pinned[i].id, complete)) ++optional;
  const std::uint32_t copied = s->fresh_mark(), selected = s->fresh_mark();
  std::int64_t skipped = std::max<std::int64_t>(optional - room, 0);
  for (std::int64_t i = 0; i < from->num_pinned; ++i) {
    const std::int64_t id = from->pinned[i].id;
    if (!s->always_resident(id, complete) && skipped-- > 0) continue;
    s->chunks[id].mark = from->pinned[i].selected ? selected : copied;
  }

  fault f;
  std::int64_t next = 0;
  chunk_record* open_chunk = nullptr;
  tier->begin_loads(true);
  for (std::int64_t id = 0; id < chunks && f.code == status::ok; ++id) {
    const bool chosen = s->chunks[id].mark == selected;
    const bool wanted_here = chosen || s->chunks[id].mark == copied || s->always_resident(id, complete);
    chunk_record* record = from->chunks[id].record;
    if (id >= complete) {
      open_chunk = records.acquire();
      if (!open_chunk || !slots.acquire(*open_chunk)) {
        f = detail::make_fault(status::budget_exceeded, "no free slot", parent.index, 1, 0);
        break;
      }
      f = tier->copy_slot(*open_chunk->slot, *record->slot);
      if (f.code == status::ok && options.scrub)
        f = tier->scrub(*open_chunk->slot, from->entries() - id * geometry.entries_per_chunk);
      if (f.code != status::ok) {
        f = detail::of_chunk(f, parent.index, id);
        break;
      }
      record = open_chunk;
    }
    s->chunks[id].record = record;
    if (!wanted_here) continue;
    const bool present = record->slot && record->arrival != detail::lost_arrival;
    const bool fresh = !record->slot;
    if (!present) f = load(*record, parent.index, id);
    if (f.code == status::ok) s->spare[next++] = {record, static_cast<chunk_id>(id), false, fresh, chosen};
  }
  if (f.code == status::ok) {
    f = settle(s->spare, next);
    if (f.code != status::ok && f.chunk < 0) f.sequence = parent.index;
  }
  const std::size_t page_bytes = layout.index_key_page_bytes();
  for (std::int32_t i = 0; f.code == status::ok && i < geometry.index_keys.lanes; ++i) {
    s->num_keys[i] = std::min(from->num_keys[i], s->max_keys());
    const std::int64_t pages =
        (s->num_keys[i] + geometry.index_keys_per_chunk() - 1) / geometry.index_keys_per_chunk();
    if (pages == 0) continue;
    f = tier->copy_keys(s->keys + std::size_t(i) * s->index_key_lane_bytes(),
                        from->keys + std::size_t(i) * from->index_key_lane_bytes(),
                        std::size_t(pages) * page_bytes);
    f.sequence = parent.index;
    f.lane = i;
  }
  if (f.code != status::ok) {
    undo_loads(s->spare, next);
    if (open_chunk) {
      slots.release(*open_chunk);
      records.release(open_chunk);
    }
    withdraw(s);
    throw error(f.code, formatted("fork of sequence {}: {}", parent.index, describe(f)));
  }

  for (std::int64_t id = 0; id < chunks; ++id) ++s->chunks[id].record->references;
  s->num_chunks = chunks;
  s->tokens = from->tokens;
  if (open_chunk) ++counters.copies_on_write;
  exchange(*s, next);
  refresh_views(*s);
  publish(index, s);
  return {index, generation_base | places[index].generation};
}

}  // namespace v0
}  // namespace flashmemory
