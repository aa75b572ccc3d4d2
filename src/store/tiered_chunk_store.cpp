// SPDX-License-Identifier: MIT
#include <algorithm>
#include <atomic>
#include <flashmemory/error.hpp>
#include <new>

#include "src/core/format.hpp"
#include "src/store/call_scope.hpp"
#include "src/store/host_tier.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::make_fault;
using detail::sequence_state;

namespace {

constexpr std::size_t alignment = 64;

store_options checked(const store_options& options) {
  validate(options.geometry);
  if (options.max_sequences < 1)
    throw argument_error(
        status::bad_argument,
        formatted("store_options::max_sequences is {}; it must be at least 1", options.max_sequences));
  if (options.transition_chunks < 0)
    throw argument_error(status::bad_argument,
                         formatted("store_options::transition_chunks is {}; it must not be negative",
                                   options.transition_chunks));
  if (!options.memory.allocate || !options.memory.deallocate)
    throw argument_error(status::null_data, "store_options::memory lacks a function");
  return options;
}

/// Tells the stores of a process apart by the upper bits of their handles' generations.
std::uint32_t next_generation_base() noexcept {
  static std::atomic<std::uint32_t> stores{0};
  return stores.fetch_add(1, std::memory_order_relaxed) << detail::generation_bits;
}

std::int64_t records_in(std::size_t bytes, std::size_t chunk_bytes) noexcept {
  // chunk_id has 31 bits, and a file offset 63.
  constexpr std::size_t most = std::size_t{1} << 40;
  return static_cast<std::int64_t>(std::min(bytes / chunk_bytes, most));
}

}  // namespace

tiered_chunk_store::impl::impl(const store_options& wanted, std::unique_ptr<backing_store> own_backing,
                               std::unique_ptr<detail::fast_tier> own_tier)
    : options(checked(wanted)),
      geometry(options.geometry),
      layout(geometry),
      chunk_bytes(layout.chunk_bytes()),
      layer_bytes(layout.layer_bytes()),
      tier(own_tier ? std::move(own_tier) : std::make_unique<detail::host_tier>(geometry, options.memory)),
      fast(options.memory, tier->memory(), options.fast_bytes),
      slots(fast, chunk_bytes, tier->host_memory() ? nullptr : tier.get()),
      records(fast, geometry.layers, records_in(options.backing_bytes, chunk_bytes)) {
  const std::size_t place_bytes = sizeof(detail::sequence_place) * std::size_t(options.max_sequences);
  const std::size_t staging = tier->workspace_bytes();
  const std::size_t needed = place_bytes + staging + slots.slot_bytes();
  if (options.backing_bytes < chunk_bytes)
    throw admission_error(
        status::budget_exceeded,
        formatted("store_options::backing_bytes is {}, but one chunk has {} bytes ({} layers x {} bytes)",
                  options.backing_bytes, chunk_bytes, geometry.layers, layer_bytes));
  if (options.fast_bytes < needed)
    throw admission_error(
        status::budget_exceeded,
        formatted("store_options::fast_bytes is {}, but one slot of {} bytes + {} bytes of tables for {} "
                  "sequences + {} bytes of staging = {} bytes",
                  options.fast_bytes, slots.slot_bytes(), place_bytes, options.max_sequences, staging,
                  needed));
  tier->open_backing(options, records.max_records(), std::move(own_backing));
  detail::chunk_record first_record;
  first_record.backing = 0;
  if (tier->host_memory() && tier->record_address(first_record)) slots.use_records_of(*tier);

  generation_base = next_generation_base();
  places = static_cast<detail::sequence_place*>(fast.allocate(place_bytes, alignment));
  if (!places || !tier->set_up(fast)) {
    fast.release(places, place_bytes, alignment);
    throw admission_error(status::budget_exceeded,
                          formatted("the memory resource has no {} bytes for the store's tables{}",
                                    place_bytes + staging, tier->allocation_failure()));
  }
  if (!tier->host_memory()) retired.reserve(std::size_t(options.max_sequences));
  for (std::int32_t i = 0; i < options.max_sequences; ++i) new (places + i) detail::sequence_place;
  const std::int64_t first = tier->initial_slots();
  if (first < 1) return;
  if (!slots.add_first_slab(first)) {
    const std::string message = formatted("the fast tier has no room for {} initial slots x {} bytes{}",
                                          first, slots.slot_bytes(), tier->allocation_failure());
    tier->tear_down(fast);
    fast.release(places, place_bytes, alignment);
    throw admission_error(status::budget_exceeded, message);
  }
}

tiered_chunk_store::impl::~impl() {
  tier->shut_down();
  for (std::int32_t i = 0; i < options.max_sequences; ++i)
    if (places[i].state) discard(static_cast<std::uint32_t>(i));
  reclaim();
  tier->tear_down(fast);
  fast.release(places, sizeof(detail::sequence_place) * std::size_t(options.max_sequences), alignment);
}

status tiered_chunk_store::impl::fail(const fault& f) const noexcept {
  const std::lock_guard<std::mutex> lock(fault_mutex);
  newest_fault = f;
  ++faults;
  return f.code;
}

status tiered_chunk_store::impl::misused() const noexcept {
  return fail(make_fault(status::bad_argument, "another thread is in a call of the store"));
}

/// What went wrong with a part of a call that goes on.
void tiered_chunk_store::impl::note(const fault& f) const noexcept {
  const std::lock_guard<std::mutex> lock(fault_mutex);
  newest_fault = f;
}

void tiered_chunk_store::impl::tell(store_event_kind kind, std::int64_t sequence, const fault& why,
                                    std::size_t bytes) const noexcept {
  if (!options.events.notify) return;
  store_event event;
  event.kind = kind;
  event.sequence = sequence;
  event.bytes = bytes;
  event.why = why;
  options.events.notify(options.events.context, event);
}

bool tiered_chunk_store::impl::owns(sequence_handle sequence) const noexcept {
  return (sequence.generation & ~detail::generation_mask) == generation_base;
}

status tiered_chunk_store::impl::find(sequence_handle sequence, sequence_state** out,
                                      const char** what) const noexcept {
  *out = nullptr;
  *what = "handle never named an open sequence";
  if (sequence.index >= static_cast<std::uint32_t>(options.max_sequences)) return status::unknown_sequence;
  const detail::sequence_place& place = places[sequence.index];
  const std::uint32_t generation = sequence.generation & detail::generation_mask;
  if (generation != 0 && !owns(sequence)) {
    *what = "handle of another store";
    return status::unknown_sequence;
  }
  if (generation == 0 || generation > place.generation) return status::unknown_sequence;
  if (generation < place.generation) {
    *what = "handle of a closed sequence";
    return status::stale_sequence;
  }
  if (!place.state) return status::unknown_sequence;
  *out = place.state;
  return status::ok;
}

sequence_state* tiered_chunk_store::impl::find_or_fail(sequence_handle sequence,
                                                       status* code) const noexcept {
  sequence_state* s;
  const char* what;
  *code = find(sequence, &s, &what);
  if (*code != status::ok) *code = fail(make_fault(*code, what, sequence.index));
  return s;
}

void tiered_chunk_store::impl::drop_reference(detail::chunk_record& record) noexcept {
  if (--record.references > 0) return;
  if (record.sealed) --sealed_records;
  bad_records -= record.bad;
  records.release(&record);
}

void tiered_chunk_store::impl::mark_sealed(detail::chunk_record& record) noexcept {
  record.sealed = true;
  read_again(record);
  ++sealed_records;
  ++counters.chunks_sealed;
  ++counters.chunks_written;
  counters.bytes_written += static_cast<std::int64_t>(chunk_bytes);
}

void tiered_chunk_store::impl::refresh_views(sequence_state& s) noexcept {
  ++s.set_version;
  s.build_view(0, s.entries());
  if (s.in_span()) s.build_view(1, geometry.entries_for(s.tokens + s.span_tokens));
}

tiered_chunk_store::tiered_chunk_store(const store_options& options)
    : impl_(std::make_unique<impl>(options, nullptr, nullptr)) {}

tiered_chunk_store::tiered_chunk_store(const store_options& options, std::unique_ptr<backing_store> backing) {
  if (!backing) throw argument_error(status::null_data, "tiered_chunk_store: the backing store is null");
  impl_ = std::make_unique<impl>(options, std::move(backing), nullptr);
}

tiered_chunk_store::tiered_chunk_store(std::unique_ptr<detail::fast_tier> tier, const store_options& options,
                                       std::unique_ptr<backing_store> backing) {
  if (!tier) throw argument_error(status::null_data, "tiered_chunk_store: the fast tier is null");
  impl_ = std::make_unique<impl>(options, std::move(backing), std::move(tier));
}

tiered_chunk_store::~tiered_chunk_store() = default;

const kv_geometry& tiered_chunk_store::geometry() const noexcept { return impl_->geometry; }

sequence_handle tiered_chunk_store::open(const sequence_options& options) {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) throw error(impl_->misused(), "open: another thread is in a call of the store");
  return impl_->open(options);
}

sequence_handle tiered_chunk_store::fork(sequence_handle parent, const sequence_options& options) {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) throw error(impl_->misused(), "fork: another thread is in a call of the store");
  return impl_->fork(parent, options);
}

void tiered_chunk_store::set_quota(sequence_handle sequence, std::int64_t max_resident_chunks) {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) throw error(impl_->misused(), "set_quota: another thread is in a call of the store");
  impl_->set_quota(sequence, max_resident_chunks);
}

status tiered_chunk_store::truncate(sequence_handle sequence, std::int64_t tokens) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->truncate(sequence, tokens);
}

status tiered_chunk_store::close(sequence_handle sequence) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->close(sequence);
}

status tiered_chunk_store::append(batch items, std::int32_t layer, const_tensor<3> k, const_tensor<3> v,
                                  stream_ref stream) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->append(items, layer, k, v, stream);
}

status tiered_chunk_store::begin_pass(batch items, stream_ref stream) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->begin_pass(items, stream);
}

status tiered_chunk_store::commit_pass(batch items, bool index_keys, stream_ref stream) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->commit_pass(items, index_keys, stream);
}

status tiered_chunk_store::append_index_keys(sequence_handle sequence, std::int32_t lane,
                                             std::int64_t first_key, view<const std::byte, 2> keys,
                                             stream_ref stream) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->append_index_keys(sequence, lane, first_key, keys, stream);
}

status tiered_chunk_store::recall(sequence_handle sequence, view<const chunk_id, 1> chunks,
                                  recall_report* report, stream_ref stream) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->recall(sequence, chunks, report, stream);
}

status tiered_chunk_store::start_recall(sequence_handle sequence, view<const chunk_id, 1> chunks,
                                        recall_report* report, stream_ref stream) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->start_recall(sequence, chunks, report, stream);
}

status tiered_chunk_store::poll_recall(sequence_handle sequence) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->poll_recall(sequence);
}

status tiered_chunk_store::finish_recall(sequence_handle sequence, late_policy late, recall_report* report,
                                         stream_ref stream) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->finish_recall(sequence, late, report, stream);
}

status tiered_chunk_store::cancel_recall(sequence_handle sequence) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->cancel_recall(sequence);
}

std::int64_t tiered_chunk_store::bad_chunks(sequence_handle sequence, view<chunk_id, 1> out) const noexcept {
  sequence_state* s = nullptr;
  const char* ignored = nullptr;
  if (impl_->bad_records == 0 || impl_->find(sequence, &s, &ignored) != status::ok) return 0;
  std::int64_t count = 0;
  for (std::int64_t id = 0; id < s->complete_chunks(); ++id) {
    if (!s->chunks[id].record->bad) continue;
    if (out.data && count < out.shape[0]) out(count) = static_cast<chunk_id>(id);
    ++count;
  }
  return count;
}

void tiered_chunk_store::guard_rollback(sequence_handle sequence, rollback_guard guard) noexcept {
  sequence_state* s = nullptr;
  const char* ignored = nullptr;
  if (impl_->find(sequence, &s, &ignored) == status::ok) s->guard = guard;
}

status tiered_chunk_store::resident(sequence_handle sequence, std::int32_t layer, resident_set* out,
                                    std::uint64_t known) const noexcept {
  const detail::call_scope scope(impl_->inside, false);
  if (!scope.entered()) return impl_->misused();
  status code;
  const sequence_state* const s = impl_->find_or_fail(sequence, &code);
  if (!s) return code;
  if (layer < 0 || layer >= impl_->geometry.layers) {
    fault f = make_fault(status::out_of_range, "layer", sequence.index, impl_->geometry.layers, layer);
    f.layer = layer;
    return impl_->fail(f);
  }
  if (!out) return impl_->fail(make_fault(status::null_data, "out", sequence.index));
  const int which = layer < s->next_layer ? 1 : 0;
  const resident_chunk* const chunks = s->views[which];
  const bool checked = known != 0 && known == s->view_versions[which];
  for (std::int64_t i = 0; !checked && i < s->num_view[which]; ++i) {
    const detail::chunk_record& record = *s->chunks[chunks[i].id].record;
    if (detail::holds(record) && record.slot->data == chunks[i].data) continue;
    fault f = make_fault(status::stale_slot, "slot does not hold the chunk", sequence.index);
    f.chunk = chunks[i].id;
    f.layer = layer;
    return impl_->fail(f);
  }
  out->chunks = chunks;
  out->count = s->num_view[which];
  out->tokens = s->tokens_of(layer);
  out->version = s->view_versions[which];
  return status::ok;
}

status tiered_chunk_store::index_keys(sequence_handle sequence, std::int32_t lane,
                                      index_key_pages* out) const noexcept {
  const detail::call_scope scope(impl_->inside, false);
  if (!scope.entered()) return impl_->misused();
  status code;
  const sequence_state* const s = impl_->find_or_fail(sequence, &code);
  if (!s) return code;
  if (lane < 0 || lane >= impl_->geometry.index_keys.lanes) {
    fault f =
        make_fault(status::out_of_range, "lane", sequence.index, impl_->geometry.index_keys.lanes, lane);
    f.lane = lane;
    return impl_->fail(f);
  }
  if (!out) return impl_->fail(make_fault(status::null_data, "out", sequence.index));
  out->data = s->keys + std::size_t(lane) * s->index_key_lane_bytes();
  out->keys = s->num_keys[lane];
  return status::ok;
}

bool tiered_chunk_store::is_open(sequence_handle sequence) const noexcept {
  sequence_state* found = nullptr;
  const char* ignored = nullptr;
  return impl_->find(sequence, &found, &ignored) == status::ok;
}

status tiered_chunk_store::info(sequence_handle sequence, sequence_info* out) const noexcept {
  const detail::call_scope scope(impl_->inside, false);
  if (!scope.entered()) return impl_->misused();
  status code;
  const sequence_state* const s = impl_->find_or_fail(sequence, &code);
  if (!s) return code;
  if (!out) return impl_->fail(make_fault(status::null_data, "out", sequence.index));
  out->options = s->options;
  out->tokens = s->tokens;
  out->complete_chunks = s->complete_chunks();
  out->resident_chunks = s->num_pinned;
  out->pending_chunks = s->coming_extra;
  out->slot_bytes = std::size_t(s->num_pinned) * impl_->chunk_bytes;
  out->index_key_bytes = s->key_bytes;
  out->table_bytes = s->table_bytes;
  out->bad_chunks = bad_chunks(sequence, {});
  out->backing_bytes = std::size_t(s->complete_chunks()) * impl_->chunk_bytes;
  return status::ok;
}

status tiered_chunk_store::read_chunk(sequence_handle sequence, chunk_id chunk,
                                      view<std::byte, 1> out) const noexcept {
  const detail::call_scope scope(impl_->inside, false);
  if (!scope.entered()) return impl_->misused();
  return impl_->read_chunk(sequence, chunk, out);
}

const std::byte* tiered_chunk_store::layer_address(sequence_handle sequence, chunk_id chunk,
                                                   std::int32_t layer) const noexcept {
  const detail::call_scope scope(impl_->inside, false);
  return scope.entered() ? impl_->layer_address(sequence, chunk, layer) : nullptr;
}

status tiered_chunk_store::read_layer(sequence_handle sequence, chunk_id chunk, std::int32_t layer,
                                      view<std::byte, 1> out) const noexcept {
  const detail::call_scope scope(impl_->inside, false);
  if (!scope.entered()) return impl_->misused();
  return impl_->read_layer(sequence, chunk, layer, out);
}

status tiered_chunk_store::append_chunk(sequence_handle sequence, view<const std::byte, 1> bytes,
                                        std::int64_t tokens) noexcept {
  const detail::call_scope scope(impl_->inside, true);
  if (!scope.entered()) return impl_->misused();
  return impl_->append_chunk(sequence, bytes, tokens);
}

store_counters tiered_chunk_store::counters() const noexcept {
  const std::lock_guard<std::mutex> lock(impl_->fault_mutex);
  store_counters copy = impl_->counters;
  copy.faults = impl_->faults;
  return copy;
}

store_usage tiered_chunk_store::usage() const noexcept {
  store_usage u;
  u.fast_bytes = impl_->fast.in_use();
  u.fast_peak_bytes = impl_->fast.peak();
  u.fast_budget_bytes = impl_->fast.budget();
  u.backing_bytes = std::size_t(impl_->sealed_records) * impl_->chunk_bytes;
  u.backing_reserved_bytes = std::size_t(impl_->reserved_records) * impl_->chunk_bytes;
  u.backing_budget_bytes = impl_->options.backing_bytes;
  u.sequences = impl_->num_sequences;
  return u;
}

std::int64_t detail::largest_quota(const tiered_chunk_store& store) noexcept {
  const auto& im = store_access::of(store);
  std::int64_t largest = 0;
  for (std::int32_t i = 0; i < im.options.max_sequences; ++i)
    if (im.places[i].state) largest = std::max(largest, im.places[i].state->quota);
  return largest;
}

fault tiered_chunk_store::order(stream_ref stream) const noexcept { return impl_->tier->order(stream); }

void tiered_chunk_store::note(const fault& f) const noexcept {
  const std::lock_guard<std::mutex> lock(impl_->fault_mutex);
  impl_->newest_fault = f;
}

fault tiered_chunk_store::last_fault() const noexcept {
  const std::lock_guard<std::mutex> lock(impl_->fault_mutex);
  return impl_->newest_fault;
}

}  // namespace v0
}  // namespace flashmemory
