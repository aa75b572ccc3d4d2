// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>

#include "src/store/impl.hpp"
#include "src/store/rows.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::chunk_record;
using detail::make_fault;
using detail::pinned_chunk;
using detail::sequence_state;

void tiered_chunk_store::impl::zero_missing(const sequence_state& s, std::int64_t chunk,
                                            std::byte* out) const noexcept {
  const std::int64_t each = geometry.entries_per_chunk;
  for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
    const std::int64_t present =
        std::clamp<std::int64_t>(geometry.entries_for(s.tokens_of(layer)) - chunk * each, 0, each);
    if (present == each) continue;
    detail::zero_entries(geometry, present, out + layout.key_offset(layer, 0));
  }
}

status tiered_chunk_store::impl::read_chunk(sequence_handle sequence, chunk_id chunk,
                                            view<std::byte, 1> out) const noexcept {
  status code;
  const sequence_state* const s = find_or_fail(sequence, &code);
  if (!s) return code;
  const auto refuse = [&](status why, const char* what, std::int64_t expected, std::int64_t actual) {
    fault f = make_fault(why, what, sequence.index, expected, actual);
    f.chunk = chunk;
    return fail(f);
  };
  const std::int64_t touched = geometry.chunks_for(s->tokens + s->span_tokens);
  if (chunk < 0 || chunk >= touched) return refuse(status::out_of_range, "chunk", touched, chunk);
  if (out.shape[0] != static_cast<std::int64_t>(chunk_bytes))
    return refuse(status::bad_shape, "bytes of out", static_cast<std::int64_t>(chunk_bytes), out.shape[0]);
  if (out.stride[0] != 1) return refuse(status::bad_shape, "stride of out", 1, out.stride[0]);
  if (!out.data) return refuse(status::null_data, "out", -1, -1);

  if (chunk >= s->num_chunks) {  // its first tokens do not make an entry yet
    std::memset(out.data, 0, chunk_bytes);
    return status::ok;
  }
  const chunk_record& record = *s->chunks[chunk].record;
  if (record.slot && record.arrival == 0) {
    if (!detail::holds(record)) return refuse(status::stale_slot, "slot does not hold the chunk", -1, -1);
    const fault f = tier->read_slot(*record.slot, out.data);
    if (f.code != status::ok) return fail(detail::of_chunk(f, sequence.index, chunk));
    if (!record.sealed) zero_missing(*s, chunk, out.data);
    return status::ok;
  }
  if (record.sealed) {
    fault f = tier->read_record(record, out.data);
    if (f.code == status::io_error || f.code == status::corrupt_chunk)
      f = tier->read_record(record, out.data);  // what passes in a moment should cost nobody anything
    return f.code == status::ok ? f.code : fail(detail::of_chunk(f, sequence.index, chunk));
  }
  // In the middle of a forward pass that sends this chunk straight to the backing store, layer by layer.
  std::memset(out.data, 0, chunk_bytes);
  for (std::int32_t layer = 0; layer < s->next_layer; ++layer) {
    const fault f = tier->read_piece(record, layer, out.data + layout.key_offset(layer, 0));
    if (f.code != status::ok) return fail(detail::of_chunk(f, sequence.index, chunk));
  }
  return status::ok;
}

/// Only where nothing of the chunk is still to come, and the record has it: in the middle of a pass that of the layers so
/// far, of chunks that go straight to the backing store.
const std::byte* tiered_chunk_store::impl::layer_address(sequence_handle sequence, chunk_id chunk,
                                                         std::int32_t layer) const noexcept {
  sequence_state* s;
  const char* ignored;
  if (find(sequence, &s, &ignored) != status::ok || chunk < 0 || chunk >= s->num_chunks || layer < 0 ||
      layer >= geometry.layers)
    return nullptr;
  const chunk_record& record = *s->chunks[chunk].record;
  const bool written = record.sealed || (!record.slot && layer < s->next_layer);
  return written && !record.bad ? tier->piece_address(record, layer) : nullptr;
}

status tiered_chunk_store::impl::read_layer(sequence_handle sequence, chunk_id chunk, std::int32_t layer,
                                            view<std::byte, 1> out) const noexcept {
  status code;
  const sequence_state* const s = find_or_fail(sequence, &code);
  if (!s) return code;
  const auto refuse = [&](status why, const char* what, std::int64_t expected, std::int64_t actual) {
    fault f = make_fault(why, what, sequence.index, expected, actual);
    f.chunk = chunk;
    f.layer = layer;
    return fail(f);
  };
  if (layer < 0 || layer >= geometry.layers)
    return refuse(status::out_of_range, "layer", geometry.layers, layer);
  if (chunk < 0 || chunk >= s->num_chunks) return refuse(status::out_of_range, "chunk", s->num_chunks, chunk);
  if (out.shape[0] != static_cast<std::int64_t>(layer_bytes))
    return refuse(status::bad_shape, "bytes of out", static_cast<std::int64_t>(layer_bytes), out.shape[0]);
  if (out.stride[0] != 1) return refuse(status::bad_shape, "stride of out", 1, out.stride[0]);
  if (!out.data) return refuse(status::null_data, "out", -1, -1);
  const chunk_record& record = *s->chunks[chunk].record;
  if (!record.sealed && (record.slot || layer >= s->next_layer))
    return refuse(status::out_of_order, "chunk is not complete", -1, -1);
  if (record.bad) return refuse(status::corrupt_chunk, "chunk was given up as unreadable", -1, -1);
  fault f = tier->read_piece(record, layer, out.data);
  if (f.code == status::io_error || f.code == status::corrupt_chunk)
    f = tier->read_piece(record, layer, out.data);  // as in read_chunk()
  if (f.code == status::ok) return f.code;
  f.layer = layer;
  return fail(detail::of_chunk(f, sequence.index, chunk));
}

status tiered_chunk_store::impl::append_chunk(sequence_handle sequence, view<const std::byte, 1> bytes,
                                              std::int64_t tokens) noexcept {
  status code;
  sequence_state* const s = find_or_fail(sequence, &code);
  if (!s) return code;
  const std::int64_t per_chunk = geometry.tokens_per_chunk();
  const std::int64_t id = s->tokens / per_chunk;
  const auto refuse = [&](status why, const char* what, std::int64_t expected, std::int64_t actual) {
    fault f = make_fault(why, what, sequence.index, expected, actual);
    f.chunk = id;
    return fail(f);
  };
  if (bytes.shape[0] != static_cast<std::int64_t>(chunk_bytes))
    return refuse(status::bad_shape, "length of bytes", static_cast<std::int64_t>(chunk_bytes),
                  bytes.shape[0]);
  if (bytes.stride[0] != 1) return refuse(status::bad_shape, "stride of bytes", 1, bytes.stride[0]);
  if (!bytes.data) return refuse(status::null_data, "bytes", -1, -1);
  if (tokens < 1 || tokens > per_chunk) return refuse(status::bad_argument, "tokens", per_chunk, tokens);
  if (s->in_span()) return refuse(status::out_of_order, "layer", s->next_layer, 0);
  if (s->tokens % per_chunk != 0)
    return refuse(status::out_of_order, "length is no multiple of tokens_per_chunk", id * per_chunk,
                  s->tokens);
  if (tokens > s->options.max_tokens - s->tokens)
    return refuse(status::sequence_full, "max_tokens", s->options.max_tokens, s->tokens + tokens);
  if (geometry.entries_for(tokens) == 0) {  // the tokens do not make an entry yet
    s->tokens += tokens;
    return status::ok;
  }

  const std::int64_t complete = id + (tokens == per_chunk ? 1 : 0);
  const bool resident = s->always_resident(id, complete);
  // Chunks that earlier calls placed because they were recent then make room, so that any number of calls
  // leaves what one append() of it all would have left.
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < s->num_pinned; ++i) {
    const pinned_chunk& old = s->pinned[i];
    if (!old.imported || s->always_resident(old.id, complete)) s->spare[next++] = old;
  }
  if (resident && next >= s->quota)
    return refuse(status::budget_exceeded, "max_resident_chunks", s->quota, next + 1);

  chunk_record* const record = records.acquire();
  if (!record) return refuse(status::budget_exceeded, "chunk records", 1, 0);
  if (resident) make_room(*s, 1);  // one more than the quota until what it replaces has gone
  if (resident && !slots.acquire(*record)) {
    records.release(record);
    return refuse(status::budget_exceeded, "fast slots", 1, 0);
  }
  fault f;
  if (resident) f = tier->write_slot(*record->slot, bytes.data);
  if (f.code == status::ok && complete > id) f = tier->write_record(*record, bytes.data);
  if (f.code != status::ok) {
    slots.release(*record);
    records.release(record);
    return fail(detail::of_chunk(f, sequence.index, id));
  }
  drop_recall(*s);
  if (complete > id) mark_sealed(*record);
  record->references = 1;
  s->chunks[id].record = record;
  s->num_chunks = id + 1;
  s->tokens += tokens;
  if (resident) s->spare[next++] = {record, static_cast<chunk_id>(id), true};
  exchange(*s, next);
  refresh_views(*s);
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
