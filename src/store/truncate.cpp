// SPDX-License-Identifier: MIT
#include <algorithm>

#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::chunk_record;
using detail::make_fault;
using detail::pinned_chunk;
using detail::sequence_state;

status tiered_chunk_store::impl::truncate(sequence_handle sequence, std::int64_t tokens) noexcept {
  status code;
  sequence_state* const s = find_or_fail(sequence, &code);
  if (!s) return code;
  if (tokens < 0 || tokens > s->tokens)
    return fail(make_fault(status::out_of_range, "tokens", sequence.index, s->tokens, tokens));
  if (std::int64_t lowest = 0;
      tokens < s->tokens && s->guard.allows && !s->guard.allows(s->guard.context, sequence, tokens, &lowest))
    return fail(make_fault(status::out_of_range, "tokens: further back than max_rollback_tokens",
                           sequence.index, lowest, tokens));

  const std::int64_t entries = geometry.entries_for(tokens);
  const std::int64_t complete = entries / geometry.entries_per_chunk;
  const std::int64_t chunks = (entries + geometry.entries_per_chunk - 1) / geometry.entries_per_chunk;
  const std::int64_t reopened = chunks > complete && s->chunks[complete].record->sealed ? complete : -1;
  chunk_record* const shared =
      reopened >= 0 && s->chunks[reopened].record->references > 1 ? s->chunks[reopened].record : nullptr;

  // Of what stays of the resident set, the oldest chunks that only a recall wanted make room if the chunks
  // that are always resident at the shorter length need it.
  const std::uint32_t resident = s->fresh_mark();
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < s->num_pinned && s->pinned[i].id < chunks; ++i, ++kept)
    s->chunks[s->pinned[i].id].mark = resident;
  const auto for_each_missing = [&](auto&& visit) {
    if (s->whole) return;
    const std::int64_t sinks = std::min<std::int64_t>(s->options.sink_chunks, chunks);
    for (std::int64_t id = 0; id < sinks; ++id)
      if (s->chunks[id].mark != resident) visit(id);
    for (std::int64_t id = std::max(complete - s->options.recent_chunks, sinks); id < chunks; ++id)
      if (s->chunks[id].mark != resident) visit(id);
  };
  std::int64_t missing = 0;
  for_each_missing([&](std::int64_t) { ++missing; });
  std::int64_t surplus = kept + missing - s->quota;
  for (std::int64_t i = 0; i < s->num_coming; ++i)
    if (surplus > 0 || s->coming[i].id >= complete) {
      drop_recall(*s);
      break;
    }
  for (std::int64_t before = -1; slots.available() != before;) {
    std::int64_t wanted = shared != nullptr;
    for_each_missing([&](std::int64_t id) { wanted += !s->chunks[id].record->slot; });
    before = slots.available();
    make_room(*s, wanted);
  }
  tier->begin_loads(true);

  std::int64_t next = 0;
  bool imported = false, selected = false;  // the chunk that is reopened
  fault f;
  for (std::int64_t i = 0; i < kept; ++i) {
    const pinned_chunk& old = s->pinned[i];
    if (surplus > 0 && !s->always_resident(old.id, complete)) {
      --surplus;
      continue;
    }
    if (shared && old.id == reopened) {
      imported = old.imported;
      selected = old.selected;
      continue;
    }
    s->spare[next++] = {old.record, old.id, old.imported, false, old.selected};
  }
  for_each_missing([&](std::int64_t id) {
    chunk_record& record = *s->chunks[id].record;
    if (f.code != status::ok || (shared && id == reopened)) return;
    const bool present = record.slot && record.arrival != detail::lost_arrival;
    const bool fresh = !record.slot;
    if (!present) f = load(record, sequence.index, id);
    if (f.code == status::ok) s->spare[next++] = {&record, static_cast<chunk_id>(id), false, fresh};
  });
  if (const fault settled = settle(s->spare, next); f.code == status::ok) f = settled;

  chunk_record* own = nullptr;
  if (shared && f.code == status::ok) {
    own = records.acquire();
    if (!own || !slots.acquire(*own)) {
      f = make_fault(status::budget_exceeded, "no free slot", sequence.index, 1, 0);
      f.chunk = reopened;
    } else {
      if (shared->slot && shared->arrival == 0) {
        f = tier->copy_slot(*own->slot, *shared->slot);
      } else {
        tier->begin_loads(true);
        f = fetch(*shared, *own->slot, sequence.index, reopened);
        if (const fault settled = settle(nullptr, 0); f.code == status::ok) f = settled;
      }
      if (f.code != status::ok) f = detail::of_chunk(f, sequence.index, reopened);
    }
    if (f.code == status::ok) {
      own->references = 1;
      s->spare[next++] = {own, static_cast<chunk_id>(reopened), imported, false, selected};
    } else if (own) {
      slots.release(*own);
      records.release(own);
    }
  }
  if (f.code != status::ok) {
    undo_loads(s->spare, next);
    return fail(f);
  }

  std::sort(s->spare, s->spare + next,
            [](const pinned_chunk& a, const pinned_chunk& b) { return a.id < b.id; });
  exchange(*s, next);
  if (own) {
    s->chunks[reopened].record = own;
    drop_reference(*shared);
    ++counters.copies_on_write;
  } else if (reopened >= 0) {
    s->chunks[reopened].record->sealed = false;
    read_again(*s->chunks[reopened].record);
    --sealed_records;
  }
  for (std::int64_t id = chunks; id < s->num_chunks; ++id) {
    drop_reference(*s->chunks[id].record);
    s->chunks[id].record = nullptr;
  }
  s->num_chunks = chunks;
  s->tokens = tokens;
  s->coming_complete = std::min(s->coming_complete, complete);
  s->span_tokens = 0;
  s->next_layer = 0;
  for (std::int32_t i = 0; i < geometry.index_keys.lanes; ++i)
    s->num_keys[i] = std::min(s->num_keys[i], tokens / geometry.index_keys.tokens_per_key);
  refresh_views(*s);
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
