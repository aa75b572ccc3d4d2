// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/error.hpp>
#include <limits>

#include "src/core/format.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::make_fault;
using detail::saturating_add;
using detail::saturating_multiply;
using detail::sequence_state;

namespace {
constexpr std::size_t alignment = 64;
}

void tiered_chunk_store::impl::check_options(const sequence_options& wanted) const {
  const auto refuse = [](const std::string& message) {
    throw argument_error(status::bad_argument, "sequence_options::" + message);
  };
  if (wanted.max_tokens < 1) refuse(formatted("max_tokens is {}; it must be at least 1", wanted.max_tokens));
  const std::int64_t most = std::numeric_limits<chunk_id>::max() * geometry.tokens_per_chunk();
  if (wanted.max_tokens > most)
    refuse(formatted("max_tokens is {}; a sequence has at most 2^31 - 1 chunks, {} tokens", wanted.max_tokens,
                     most));
  if (wanted.max_resident_chunks < 0)
    refuse(formatted("max_resident_chunks is {}; it must not be negative", wanted.max_resident_chunks));
  if (wanted.sink_chunks < 0)
    refuse(formatted("sink_chunks is {}; it must not be negative", wanted.sink_chunks));
  if (wanted.recent_chunks < 0)
    refuse(formatted("recent_chunks is {}; it must not be negative", wanted.recent_chunks));
  const std::int64_t chunks = geometry.chunks_for(wanted.max_tokens);
  if (wanted.max_resident_chunks == 0 || wanted.max_resident_chunks >= chunks) return;
  const std::int64_t least = std::int64_t{wanted.sink_chunks} + wanted.recent_chunks + 2;
  if (wanted.max_resident_chunks < least)
    refuse(
        formatted("max_resident_chunks is {}; it must be at least {} = {} sink_chunks + {} recent_chunks "
                  "+ 1 open + 1 that one interval adds, or 0, or all {} chunks",
                  wanted.max_resident_chunks, least, wanted.sink_chunks, wanted.recent_chunks, chunks));
}

std::int64_t tiered_chunk_store::impl::transition_slots(const sequence_state* added) const noexcept {
  // A sequence that is resident as a whole never exchanges anything. truncate() may need the newest chunks
  // and the open one while the dropped ones are still there, whatever the options say.
  std::int64_t slots_needed = 0;
  const auto visit = [&](const sequence_state* s) {
    if (!s || s->whole) return;
    const std::int64_t rollback = std::int64_t{s->options.recent_chunks} + 1;
    slots_needed =
        std::max(slots_needed,
                 options.transition_chunks == 0 ? s->quota : std::max(options.transition_chunks, rollback));
  };
  for (std::int32_t i = 0; i < options.max_sequences; ++i) visit(places[i].state);
  visit(added);
  return slots_needed;
}

/// Slots that open sequences may need: their quotas, and what they exchange chunks through.
std::int64_t tiered_chunk_store::impl::slots_to_keep() const noexcept {
  return quota_sum + std::max(transition_slots(nullptr), slots_in_transit());
}

void tiered_chunk_store::impl::refuse_admission(const std::string& message) {
  ++counters.admissions_refused;
  tell(store_event_kind::admission_refused, -1, make_fault(status::budget_exceeded, "admission"));
  throw admission_error(status::budget_exceeded, message);
}

sequence_state* tiered_chunk_store::impl::admit(const sequence_options& wanted, std::uint32_t* index) {
  check_options(wanted);
  std::int32_t place = 0;
  while (place < options.max_sequences && places[place].state) ++place;
  if (place == options.max_sequences)
    refuse_admission(
        formatted("all {} places of store_options::max_sequences are taken", options.max_sequences));

  const std::int64_t chunks = geometry.chunks_for(wanted.max_tokens);
  const std::int64_t quota =
      wanted.max_resident_chunks == 0 ? chunks : std::min(wanted.max_resident_chunks, chunks);
  sequence_state shape;
  shape.options = wanted;
  shape.quota = quota;
  shape.whole = wanted.max_resident_chunks == 0;
  const std::int64_t transition = std::max(transition_slots(&shape), slots_in_transit());
  const std::int64_t target_slots = quota_sum + quota + transition;
  const std::int64_t target_records = reserved_records + chunks;

  const std::size_t keys =
      saturating_multiply(saturating_multiply(std::size_t(geometry.index_keys.lanes), std::size_t(chunks)),
                          geometry.index_keys.lanes > 0 ? layout.index_key_page_bytes() : 0);
  const std::size_t own_tables = detail::sequence_block_bytes(geometry, quota, chunks);
  const std::size_t tables =
      saturating_add(own_tables, records.bytes_to_grow_to(std::min(target_records, records.max_records())));
  const std::size_t backing_needed = saturating_multiply(std::size_t(chunks), chunk_bytes);
  std::int64_t new_slots = 0;
  std::size_t slot_total = 0, needed = 0;
  const auto fits = [&] {
    new_slots = std::max<std::int64_t>(target_slots - slots.total(), 0);
    slot_total = slots.bytes_for(new_slots);
    needed = saturating_add(saturating_add(slot_total, retired_has(keys) ? 0 : keys), tables);
    return fast.has_room(needed);
  };
  bool fast_fits = fits();
  if (!fast_fits && !tier->host_memory()) {
    reclaim();
    fast_fits = fits();
  }
  const bool backing_fits = target_records <= records.max_records();
  const auto arithmetic = [&](const char* problem) {
    return formatted(
        "{}: fast tier: {} new slots ({} of the quota, transition pool of {} slots) x {} bytes = {} + {} "
        "bytes "
        "of keys + {} bytes of tables = {} bytes, {} in use of {}; backing store: {} chunks x {} bytes = {} "
        "bytes, {} reserved of {}",
        problem, new_slots, quota, transition, slots.slot_bytes(), slot_total, keys, tables, needed,
        fast.in_use(), fast.budget(), chunks, chunk_bytes, backing_needed,
        std::size_t(reserved_records) * chunk_bytes, options.backing_bytes);
  };
  if (!fast_fits || !backing_fits)
    refuse_admission(arithmetic(fast_fits      ? "the backing store has no room for the sequence"
                                : backing_fits ? "the fast tier has no room for the sequence"
                                               : "neither tier has room for the sequence"));

  void* block = nullptr;
  std::byte* key_block = nullptr;
  const auto take = [&] {
    block = fast.allocate(own_tables, alignment);
    key_block = keys > 0 ? take_keys(keys) : nullptr;
    // The backing store's space comes before the records: those that are left when it has none are the ones it had.
    if (block && (keys == 0 || key_block) && tier->reserve_records(records.end_with(target_records)) &&
        records.grow_to(target_records) && slots.grow_to(target_slots))
      return true;
    fast.release(block, own_tables, alignment);
    if (key_block) give_keys(key_block, keys);
    slots.trim_to(slots_to_keep());
    records.trim_to(reserved_records);
    return false;
  };
  bool taken = take();
  if (!taken && !tier->host_memory()) {
    reclaim();
    taken = take();
  }
  if (!taken)
    refuse_admission(arithmetic("the memory that the sequence needs could not be had") +
                     tier->allocation_failure());
  sequence_state* const s = detail::make_sequence(block, geometry, wanted, quota, chunks);
  s->keys = key_block;
  s->key_bytes = keys;
  s->table_bytes = own_tables;
  *index = static_cast<std::uint32_t>(place);
  return s;
}

/// Index keys of the size come from a closed sequence where memory is not given back at once: what may still
/// read them was queued before whatever will write them.
std::byte* tiered_chunk_store::impl::take_keys(std::size_t bytes) noexcept {
  for (detail::retired_block& block : retired) {
    if (block.bytes != bytes) continue;
    std::byte* const data = block.data;
    block = retired.back();
    retired.pop_back();
    return data;
  }
  return static_cast<std::byte*>(fast.allocate_data(bytes, alignment));
}

void tiered_chunk_store::impl::give_keys(std::byte* block, std::size_t bytes) noexcept {
  if (!tier->host_memory()) {
    if (retired.size() < retired.capacity()) {
      retired.push_back({block, bytes});
      return;
    }
    if (!tier->idle()) return;  // lost, and still counted: somebody may be writing it
  }
  fast.release_data(block, bytes, alignment);
}

bool tiered_chunk_store::impl::retired_has(std::size_t bytes) const noexcept {
  return std::any_of(retired.begin(), retired.end(),
                     [&](const detail::retired_block& block) { return block.bytes == bytes; });
}

/// Gives back what closed sequences have left in a fast tier that does not give back at once.
void tiered_chunk_store::impl::reclaim() noexcept {
  if (!tier->idle()) return;
  for (const detail::retired_block& block : retired) fast.release_data(block.data, block.bytes, alignment);
  retired.clear();
  slots.reclaim(slots_to_keep());
}

void tiered_chunk_store::impl::publish(std::uint32_t index, sequence_state* s) noexcept {
  places[index].state = s;
  quota_sum += s->quota;
  reserved_records += s->capacity;
  ++num_sequences;
}

/// Gives back what admit() took for a sequence that was not published, or is no longer.
void tiered_chunk_store::impl::withdraw(sequence_state* s) noexcept {
  slots.trim_to(slots_to_keep());
  records.trim_to(reserved_records);
  if (s->keys) give_keys(s->keys, s->key_bytes);
  fast.release(s, s->table_bytes, alignment);
}

void tiered_chunk_store::impl::discard(std::uint32_t index) noexcept {
  detail::sequence_place& place = places[index];
  sequence_state* const s = place.state;
  drop_recall(*s);
  exchange(*s, 0);
  for (std::int64_t c = 0; c < s->num_chunks; ++c) drop_reference(*s->chunks[c].record);
  place.state = nullptr;
  if (++place.generation > detail::generation_mask) place.generation = 1;
  quota_sum -= s->quota;
  reserved_records -= s->capacity;
  --num_sequences;
  withdraw(s);
}

sequence_handle tiered_chunk_store::impl::open(const sequence_options& wanted) {
  std::uint32_t index = 0;
  sequence_state* const admitted = admit(wanted, &index);
  publish(index, admitted);
  return {index, generation_base | places[index].generation};
}

status tiered_chunk_store::impl::close(sequence_handle sequence) noexcept {
  status code;
  if (!find_or_fail(sequence, &code)) return code;
  discard(sequence.index);
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
