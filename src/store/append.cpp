// SPDX-License-Identifier: MIT
#include <algorithm>

#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::chunk_record;
using detail::make_fault;
using detail::sequence_state;

namespace {

bool has_vacated(const sequence_state& s) noexcept {
  return std::any_of(s.pinned, s.pinned + s.num_pinned,
                     [](const detail::pinned_chunk& p) { return p.vacated; });
}

const fault no_fault;

constexpr const char* k_names[] = {"k", "entries of k", "kv_heads of k", "key_dim of k", "last stride of k"};
constexpr const char* v_names[] = {"v", "entries of v", "kv_heads of v", "value_dim of v",
                                   "last stride of v"};

/// The chunks that a span of entries [first, last) touches or creates.
struct span_chunks {
  std::int64_t first;      ///< that gets an entry
  std::int64_t first_new;  ///< that did not exist before
  std::int64_t end;        ///< one past the last
  std::int64_t complete;   ///< chunks that are complete after it
};

span_chunks chunks_of(const kv_geometry& g, std::int64_t first, std::int64_t last) noexcept {
  const std::int64_t each = g.entries_per_chunk;
  span_chunks c;
  c.first = first / each;
  c.first_new = (first + each - 1) / each;
  c.end = std::max((last + each - 1) / each, c.first_new);
  c.complete = last / each;
  return c;
}

}  // namespace

fault tiered_chunk_store::impl::check_rows(const char* const* names, const const_tensor<3>& rows,
                                           std::int64_t dim) const noexcept {
  if (rows.type != dtype::f32 && rows.type != geometry.type)
    return make_fault(status::bad_dtype, names[0], -1, static_cast<std::int64_t>(geometry.type),
                      static_cast<std::int64_t>(rows.type));
  if (rows.shape[0] < 0) return make_fault(status::bad_shape, names[1], -1, 0, rows.shape[0]);
  if (rows.shape[1] != geometry.kv_heads)
    return make_fault(status::bad_shape, names[2], -1, geometry.kv_heads, rows.shape[1]);
  if (rows.shape[2] != dim) return make_fault(status::bad_shape, names[3], -1, dim, rows.shape[2]);
  if (rows.stride[2] != 1 && dim > 1) return make_fault(status::bad_shape, names[4], -1, 1, rows.stride[2]);
  return no_fault;
}

fault tiered_chunk_store::impl::check_item(const batch_item& item, std::int32_t layer) const noexcept {
  const std::int64_t id = item.sequence.index;
  sequence_state* s;
  const char* what;
  const status found = find(item.sequence, &s, &what);
  if (found != status::ok) return make_fault(found, what, id);
  if (s->batch_mark == batch_mark) return make_fault(status::bad_argument, "sequence listed twice", id);
  s->batch_mark = batch_mark;
  if (item.num_tokens < 1) return make_fault(status::bad_argument, "num_tokens", id, 1, item.num_tokens);
  if (layer != s->next_layer) return make_fault(status::out_of_order, "layer", id, s->next_layer, layer);
  if (item.position != s->tokens)
    return make_fault(status::out_of_order, "position", id, s->tokens, item.position);
  if (s->in_span() && item.num_tokens != s->span_tokens)
    return make_fault(status::out_of_order, "num_tokens", id, s->span_tokens, item.num_tokens);
  if (item.num_tokens > s->options.max_tokens - s->tokens)
    return make_fault(status::sequence_full, "max_tokens", id, s->options.max_tokens,
                      s->tokens + item.num_tokens);
  return no_fault;
}

/// Visits the pinned chunks that nobody has selected and that are neither sink nor recent, before and after a span:
/// where the quota is full they make room, oldest first, as far as the span needs it. \returns how many they are
template <class F>
std::int64_t tiered_chunk_store::impl::for_each_giving_way(sequence_state& s, std::int64_t num_tokens,
                                                           const F& visit) noexcept {
  const std::int64_t complete = s.complete_chunks();
  const span_chunks c = chunks_of(geometry, s.entries(), geometry.entries_for(s.tokens + num_tokens));
  if (s.whole) return 0;
  std::int64_t added = 0;
  for (std::int64_t id = c.first_new; id < c.end; ++id) added += s.always_resident(id, c.complete);
  const std::int64_t wanted = s.num_pinned + added - s.quota;
  std::int64_t gone = 0;
  for (std::int64_t i = 0; gone < wanted && i < s.num_pinned; ++i) {
    detail::pinned_chunk& p = s.pinned[i];
    if (p.selected || s.always_resident(p.id, complete) || s.always_resident(p.id, c.complete)) continue;
    ++gone;
    visit(p);
  }
  return gone;
}

/// Takes the pins of what gives way back, but leaves it in the list: the append() may still fail.
void tiered_chunk_store::impl::vacate(sequence_state& s, std::int64_t num_tokens) noexcept {
  for_each_giving_way(s, num_tokens, [&](detail::pinned_chunk& p) {
    p.vacated = true;
    if (--p.record->pins == 0) slots.release(*p.record);
  });
}

/// After a failure: vacated chunks get their pins back, and slots where theirs were given away.
void tiered_chunk_store::impl::restore(sequence_state& s, std::uint32_t sequence) noexcept {
  if (!has_vacated(s)) return;
  tier->begin_loads(true);
  for (std::int64_t i = 0; i < s.num_pinned; ++i) {
    detail::pinned_chunk& p = s.pinned[i];
    p.loaded = false;
    if (!p.vacated) continue;
    ++p.record->pins;
    p.vacated = false;
    if (p.record->slot) continue;
    p.loaded = true;
    if (load(*p.record, sequence, p.id).code == status::ok) p.record->arrival = detail::lost_arrival;
  }
  std::uint64_t ticket = 0;
  fault f = tier->flush_loads(&ticket);
  if (f.code == status::ok) f = tier->await_loads(ticket);
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < s.num_pinned; ++i) {
    detail::pinned_chunk p = s.pinned[i];
    if (p.loaded && f.code == status::ok && p.record->slot) p.record->arrival = 0;
    if (p.record->slot && p.record->arrival == 0) {
      p.loaded = false;
      s.pinned[next++] = p;
    } else if (--p.record->pins == 0) {
      slots.release(*p.record);
    }
  }
  s.num_pinned = next;
  refresh_views(s);
}

/// Once nothing can fail any more.
void tiered_chunk_store::impl::give_way(sequence_state& s, std::int64_t num_tokens) noexcept {
  bool any = false;
  for_each_giving_way(s, num_tokens, [&](detail::pinned_chunk& p) {
    if (!p.vacated && --p.record->pins == 0) slots.release(*p.record);
    p.record = nullptr;
    any = true;
  });
  if (!any) return;
  s.num_pinned = std::remove_if(s.pinned, s.pinned + s.num_pinned,
                                [](const detail::pinned_chunk& p) { return !p.record; }) -
                 s.pinned;
  refresh_views(s);
  drop_recall(s);  // its slots beyond the quota were counted with these chunks in the set
}

/// Only for layer 0: what a span adds, and whether the quota has room for what of it must be resident.
fault tiered_chunk_store::impl::check_growth(const batch_item& item, sequence_state& s,
                                             span_needs* needs) noexcept {
  const span_chunks c = chunks_of(geometry, s.entries(), geometry.entries_for(s.tokens + item.num_tokens));
  std::int64_t kept = c.end - c.first_new;
  needs->records += kept;
  if (!s.whole) {
    const std::int64_t from = std::max<std::int64_t>(c.first_new, s.options.sink_chunks);
    const std::int64_t to = std::min(c.end, c.complete - s.options.recent_chunks);
    kept -= std::max<std::int64_t>(to - from, 0);
  }
  const std::int64_t way = for_each_giving_way(s, item.num_tokens, [](detail::pinned_chunk&) {});
  needs->slots += kept;
  needs->way += way;
  if (s.num_pinned + kept - way > s.quota)
    return make_fault(status::budget_exceeded, "max_resident_chunks", item.sequence.index, s.quota,
                      s.num_pinned + kept - way);
  return no_fault;
}

fault tiered_chunk_store::impl::begin_span(sequence_state& s, std::int64_t num_tokens) noexcept {
  const span_chunks c = chunks_of(geometry, s.entries(), geometry.entries_for(s.tokens + num_tokens));
  s.pending_chunks = s.num_chunks;
  for (std::int64_t id = c.first_new; id < c.end; ++id) {
    chunk_record* const record = records.acquire();
    if (!record) return make_fault(status::budget_exceeded, "chunk records");
    record->references = 1;
    s.chunks[id].record = record;
    s.pending_chunks = id + 1;
    if (!s.always_resident(id, c.complete)) continue;
    if (!slots.acquire(*record))
      return make_fault(status::budget_exceeded, "fast slots", -1, 1, slots.available());
    tier->prepare(*record->slot);
    if (!options.scrub) continue;
    if (const fault f = tier->scrub(*record->slot, 0); f.code != status::ok) return f;
  }
  return no_fault;
}

void tiered_chunk_store::impl::abandon_span(sequence_state& s) noexcept {
  for (std::int64_t id = s.num_chunks; id < s.pending_chunks; ++id) {
    slots.release(*s.chunks[id].record);
    drop_reference(*s.chunks[id].record);
    s.chunks[id].record = nullptr;
  }
  s.pending_chunks = s.num_chunks;
}

fault tiered_chunk_store::impl::write_rows(const batch_item& item, std::int32_t layer,
                                           const const_tensor<3>& k, const const_tensor<3>& v,
                                           std::int64_t first_row) noexcept {
  sequence_state& s = *places[item.sequence.index].state;
  const std::int64_t first = s.entries();
  const std::int64_t last = geometry.entries_for(s.tokens + item.num_tokens);
  const std::int64_t each = geometry.entries_per_chunk;
  const span_chunks c = chunks_of(geometry, first, last);
  for (std::int64_t id = c.first; id < c.end; ++id) {
    const std::int64_t from = std::max(first, id * each);
    const std::int64_t count = std::min(last, (id + 1) * each) - from;
    if (count <= 0) continue;
    detail::row_span span;
    span.record = s.chunks[id].record;
    span.layer = layer;
    span.first_row = first_row + from - first;
    span.first_entry = from - id * each;
    span.count = count;
    fault f;
    if (span.record->slot && !detail::holds(*span.record))
      f = make_fault(status::stale_slot, "slot does not hold the chunk");
    else
      f = tier->write_rows(span, k, v);
    if (f.code == status::ok) continue;
    f.layer = layer;
    return detail::of_chunk(f, item.sequence.index, id);
  }
  return no_fault;
}

/// Writes the chunks that the last layer completes through to the backing store.
fault tiered_chunk_store::impl::seal(const batch_item& item) noexcept {
  sequence_state& s = *places[item.sequence.index].state;
  const span_chunks c = chunks_of(geometry, s.entries(), geometry.entries_for(s.tokens + item.num_tokens));
  for (std::int64_t id = c.first; id < c.complete; ++id) {
    chunk_record& record = *s.chunks[id].record;
    if (!record.slot) continue;
    const fault f = tier->seal(record);
    if (f.code != status::ok) return detail::of_chunk(f, item.sequence.index, id);
  }
  return no_fault;
}

/// Makes what begin_span() took a part of the sequence: layers with the span see the longer resident set.
void tiered_chunk_store::impl::adopt_span(const batch_item& item) noexcept {
  sequence_state& s = *places[item.sequence.index].state;
  const std::int64_t last = geometry.entries_for(s.tokens + item.num_tokens);
  const span_chunks c = chunks_of(geometry, s.entries(), last);
  for (std::int64_t id = c.first_new; id < c.end; ++id) {
    chunk_record* const record = s.chunks[id].record;
    if (!record->slot) continue;
    ++s.set_version;
    ++record->pins;
    s.pinned[s.num_pinned++] = {record, static_cast<chunk_id>(id)};
  }
  s.num_chunks = s.pending_chunks;
  s.span_tokens = item.num_tokens;
  s.build_view(1, last);
}

/// After the last layer: the span's chunks that are complete are sealed, and the sequence is longer.
void tiered_chunk_store::impl::end_span(const batch_item& item) noexcept {
  sequence_state& s = *places[item.sequence.index].state;
  const span_chunks c = chunks_of(geometry, s.entries(), geometry.entries_for(s.tokens + item.num_tokens));
  for (std::int64_t id = c.first; id < c.complete; ++id) mark_sealed(*s.chunks[id].record);
  s.tokens += item.num_tokens;
  s.span_tokens = 0;
  s.next_layer = 0;
  std::swap(s.views[0], s.views[1]);
  std::swap(s.num_view[0], s.num_view[1]);
  std::swap(s.view_versions[0], s.view_versions[1]);
}

/// Whether every item may go on with `layer`, and what they need for it.
fault tiered_chunk_store::impl::check_items(batch items, std::int32_t layer, span_needs* needs) noexcept {
  const std::int64_t count = items.shape[0];
  if (count < 0) return make_fault(status::bad_shape, "items", -1, 0, count);
  if (count > 0 && !items.data) return make_fault(status::null_data, "items");
  ++batch_mark;
  for (std::int64_t i = 0; i < count; ++i) {
    const batch_item& item = items(i);
    if (item.empty()) {
      if (item.num_tokens < 0 || item.position < 0)
        return make_fault(status::bad_argument, "rows of an empty item", -1, 0, item.num_tokens);
      needs->rows += rows_of(item);
      continue;
    }
    fault f = check_item(item, layer);
    if (f.code != status::ok) return f;
    sequence_state& s = *places[item.sequence.index].state;
    needs->rows += rows_of(item);
    if (layer == 0) f = check_growth(item, s, needs);
    if (f.code != status::ok) return f;
  }
  return no_fault;
}

/// Admission has made sure of both; a store that is out of step with itself must not go on.
fault tiered_chunk_store::impl::check_pools(const span_needs& needs) const noexcept {
  if (needs.slots - needs.way > slots.available())
    return make_fault(status::budget_exceeded, "fast slots", -1, needs.slots - needs.way, slots.available());
  if (needs.records > records.available())
    return make_fault(status::budget_exceeded, "chunk records", -1, needs.records, records.available());
  return no_fault;
}

/// Takes the records and slots of all spans; on failure abandon_spans() gives them back. What gives way stays where it
/// is until nothing can fail any more, as long as there are other slots.
fault tiered_chunk_store::impl::begin_spans(batch items, const span_needs& needs) noexcept {
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    sequence_state& s = *places[items(i).sequence.index].state;
    if (slots.available() < needs.slots) vacate(s, items(i).num_tokens);
    s.pending_chunks = s.num_chunks;
  }
  // A recall under way may want what has given way, and has slots of its own; it ends with that set all the same.
  for (std::int64_t i = 0; i < items.shape[0] && slots.available() < needs.slots; ++i)
    if (!items(i).empty() && has_vacated(*places[items(i).sequence.index].state))
      drop_recall(*places[items(i).sequence.index].state);
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    if (fault f = begin_span(*places[items(i).sequence.index].state, items(i).num_tokens);
        f.code != status::ok) {
      f.sequence = items(i).sequence.index;
      return f;
    }
  }
  return no_fault;
}

void tiered_chunk_store::impl::abandon_spans(batch items) noexcept {
  for (std::int64_t i = 0; i < items.shape[0]; ++i)
    if (!items(i).empty()) abandon_span(*places[items(i).sequence.index].state);
  for (std::int64_t i = 0; i < items.shape[0]; ++i)
    if (!items(i).empty()) restore(*places[items(i).sequence.index].state, items(i).sequence.index);
}

void tiered_chunk_store::impl::adopt_spans(batch items) noexcept {
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    give_way(*places[items(i).sequence.index].state, items(i).num_tokens);
    adopt_span(items(i));
  }
}

status tiered_chunk_store::impl::append(batch items, std::int32_t layer, const_tensor<3> k, const_tensor<3> v,
                                        stream_ref stream) noexcept {
  const auto refuse = [&](fault f) {
    f.layer = layer;
    return fail(f);
  };
  fault f = tier->enter(stream);
  if (f.code != status::ok) return refuse(f);
  if (layer < 0 || layer >= geometry.layers)
    return refuse(make_fault(status::out_of_range, "layer", -1, geometry.layers, layer));
  f = check_rows(k_names, k, geometry.key_dim);
  if (f.code != status::ok) return refuse(f);
  f = check_rows(v_names, v, geometry.value_dim);
  if (f.code != status::ok) return refuse(f);
  span_needs needs;
  f = check_items(items, layer, &needs);
  if (f.code != status::ok) return refuse(f);
  const std::int64_t rows = needs.rows;
  if (k.shape[0] != rows) return refuse(make_fault(status::bad_shape, "entries of k", -1, rows, k.shape[0]));
  if (v.shape[0] != rows) return refuse(make_fault(status::bad_shape, "entries of v", -1, rows, v.shape[0]));
  if (rows > 0 && !k.data) return refuse(make_fault(status::null_data, "k"));
  if (rows > 0 && !v.data) return refuse(make_fault(status::null_data, "v"));
  f = check_pools(needs);
  if (f.code != status::ok) return refuse(f);

  const std::int64_t count = items.shape[0];
  if (layer == 0) f = begin_spans(items, needs);
  std::int64_t row = 0;
  tier->begin_rows();
  for (std::int64_t i = 0; f.code == status::ok && i < count; ++i) {
    if (!items(i).empty()) f = write_rows(items(i), layer, k, v, row);
    row += rows_of(items(i));
  }
  if (f.code == status::ok) f = tier->flush_rows(layer, k, v);
  for (std::int64_t i = 0; layer == geometry.layers - 1 && f.code == status::ok && i < count; ++i)
    if (!items(i).empty()) f = seal(items(i));
  if (f.code == status::ok) f = tier->leave(stream);
  if (f.code != status::ok) {
    if (layer == 0) abandon_spans(items);
    return refuse(f);
  }
  if (layer == 0) adopt_spans(items);
  for (std::int64_t i = 0; i < count; ++i) {
    if (items(i).empty()) continue;
    places[items(i).sequence.index].state->next_layer = layer + 1;
    if (layer == geometry.layers - 1) end_span(items(i));
  }
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
