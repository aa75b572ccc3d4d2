// SPDX-License-Identifier: MIT
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::make_fault;
using detail::sequence_state;

status tiered_chunk_store::impl::begin_pass(batch items, stream_ref stream) noexcept {
  fault f = tier->enter(stream);
  if (f.code != status::ok) return fail(f);
  span_needs needs;
  f = check_items(items, 0, &needs);
  if (f.code != status::ok) return fail(f);
  // What append() sends straight to the backing store has no place that a kernel could write to.
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const batch_item& item = items(i);
    if (item.empty()) continue;
    const sequence_state& s = *places[item.sequence.index].state;
    const std::int64_t each = geometry.entries_per_chunk;
    const std::int64_t last = geometry.entries_for(s.tokens + item.num_tokens);
    for (std::int64_t id = (s.entries() + each - 1) / each; id * each < last; ++id)
      if (!s.always_resident(id, last / each)) {
        f = make_fault(status::unsupported, "num_tokens: a pass of whole chunks", item.sequence.index, -1,
                       item.num_tokens);
        f.chunk = id;
        return fail(f);
      }
  }
  f = check_pools(needs);
  if (f.code != status::ok) return fail(f);

  tier->begin_rows();
  f = begin_spans(items, needs);
  if (f.code == status::ok) f = tier->leave(stream);
  if (f.code != status::ok) {
    abandon_spans(items);
    return fail(f);
  }
  adopt_spans(items);
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    // The open chunk goes on being written; a rollback may have brought it back only just now.
    sequence_state& s = *places[items(i).sequence.index].state;
    const std::int64_t open = s.entries() / geometry.entries_per_chunk;
    if (s.entries() % geometry.entries_per_chunk != 0 && s.chunks[open].record->slot)
      tier->prepare(*s.chunks[open].record->slot);
    s.next_layer = geometry.layers;
  }
  return status::ok;
}

fault tiered_chunk_store::impl::check_open_pass(const batch_item& item, bool index_keys) noexcept {
  const std::int64_t id = item.sequence.index;
  sequence_state* s;
  const char* what;
  const status found = find(item.sequence, &s, &what);
  if (found != status::ok) return make_fault(found, what, id);
  if (s->batch_mark == batch_mark) return make_fault(status::bad_argument, "sequence listed twice", id);
  s->batch_mark = batch_mark;
  if (s->next_layer != geometry.layers)
    return make_fault(status::out_of_order, "no pass was begun", id, geometry.layers, s->next_layer);
  if (item.position != s->tokens)
    return make_fault(status::out_of_order, "position", id, s->tokens, item.position);
  if (item.num_tokens != s->span_tokens)
    return make_fault(status::out_of_order, "num_tokens", id, s->span_tokens, item.num_tokens);
  for (std::int32_t i = 0; index_keys && i < geometry.index_keys.lanes; ++i) {
    if (s->num_keys[i] == s->tokens / geometry.index_keys.tokens_per_key) continue;
    fault f = make_fault(status::out_of_order, "index keys", id,
                         s->tokens / geometry.index_keys.tokens_per_key, s->num_keys[i]);
    f.lane = i;
    return f;
  }
  return {};
}

status tiered_chunk_store::impl::commit_pass(batch items, bool index_keys, stream_ref stream) noexcept {
  fault f = tier->enter(stream);
  if (f.code != status::ok) return fail(f);
  const std::int64_t count = items.shape[0];
  if (count < 0) return fail(make_fault(status::bad_shape, "items", -1, 0, count));
  if (count > 0 && !items.data) return fail(make_fault(status::null_data, "items"));
  ++batch_mark;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!items(i).empty()) f = check_open_pass(items(i), index_keys);
    if (f.code != status::ok) return fail(f);
  }
  for (std::int64_t i = 0; f.code == status::ok && i < count; ++i)
    if (!items(i).empty()) f = seal(items(i));
  if (f.code == status::ok) f = tier->leave(stream);
  if (f.code != status::ok) return fail(f);
  for (std::int64_t i = 0; i < count; ++i) {
    if (items(i).empty()) continue;
    end_span(items(i));
    sequence_state& s = *places[items(i).sequence.index].state;
    for (std::int32_t k = 0; index_keys && k < geometry.index_keys.lanes; ++k)
      s.num_keys[k] = s.tokens / geometry.index_keys.tokens_per_key;
  }
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
