// SPDX-License-Identifier: MIT
#include "src/c/device.hpp"

using namespace flashmemory;

namespace {

/// A store and the fault of its last call.
fm_status done(const c::store_object& s, status code) noexcept {
  return c::result(code, s.store->last_fault());
}

/// Opens a sequence as `call` does.
template <class Call>
fm_status opened(fm_store* store, const fm_sequence_options* options, fm_sequence* out,
                 Call&& call) noexcept {
  return c::guarded([&] {
    if (!options) return c::refuse(status::null_data, "options");
    if (!out) return c::refuse(status::null_data, "out");
    fm_sequence_options o;
    if (const fm_status code = c::read(options, c::default_sequence_options(), "options", &o); code != FM_OK)
      return code;
    const c::hold s(store, c::kind::store, "store", true);
    if (!s) return s.why();
    const sequence_handle h = call(*s.as<c::store_object>().store, c::sequence_options_of(o));
    *out = {h.index, h.generation};
    return fm_status(FM_OK);
  });
}

}  // namespace

fm_status fm_store_open(const fm_store_options* options, fm_store** out) {
  return c::guarded([&] {
    if (!options) return c::refuse(status::null_data, "options");
    if (!out) return c::refuse(status::null_data, "out");
    fm_store_options o;
    if (const fm_status code = c::read(options, c::default_store_options(), "options", &o); code != FM_OK)
      return code;
    const store_options made = c::store_options_of(o);
    auto object = std::make_unique<c::store_object>();
    object->where = o.cuda ? c::place::device : c::place::host;
    object->store = o.cuda ? c::open_device_store(made, o) : std::make_unique<tiered_chunk_store>(made);
    void* const handle = c::make_handle(c::kind::store, object.get());
    if (!handle) return fm_status(FM_NO_MEMORY);
    object.release();
    *out = static_cast<fm_store*>(handle);
    return fm_status(FM_OK);
  });
}

fm_status fm_store_close(fm_store* store) {
  c::hold s(store, c::kind::store, "store", true);
  if (!s) return s.why();
  auto* const object = &s.as<c::store_object>();
  if (const fm_status code = s.close("store"); code != FM_OK) return code;
  delete object;
  return FM_OK;
}

fm_status fm_store_get_usage(fm_store* store, fm_store_usage* out) {
  const c::hold s(store, c::kind::store, "store", false);
  if (!s) return s.why();
  const store_usage u = s.as<c::store_object>().store->usage();
  const store_counters n = s.as<c::store_object>().store->counters();
  fm_store_usage o{};
  o.fast_bytes = u.fast_bytes;
  o.fast_peak_bytes = u.fast_peak_bytes;
  o.fast_budget_bytes = u.fast_budget_bytes;
  o.backing_bytes = u.backing_bytes;
  o.backing_budget_bytes = u.backing_budget_bytes;
  o.sequences = u.sequences;
  o.recalls = n.recalls;
  o.recalls_failed = n.recalls_failed;
  o.chunks_recalled = n.recalled;
  o.bytes_recalled = n.bytes_recalled;
  o.chunks_unreadable = n.chunks_unreadable;
  o.chunks_bad = n.chunks_bad;
  o.admissions_refused = n.admissions_refused;
  o.faults = n.faults;
  return c::write(out, o, "out");
}

fm_status fm_sequence_open(fm_store* store, const fm_sequence_options* options, fm_sequence* out) {
  return opened(store, options, out,
                [](tiered_chunk_store& s, const sequence_options& o) { return s.open(o); });
}

fm_status fm_sequence_fork(fm_store* store, fm_sequence parent, const fm_sequence_options* options,
                           fm_sequence* out) {
  return opened(store, options, out, [&](tiered_chunk_store& s, const sequence_options& o) {
    return s.fork(c::handle_of(parent), o);
  });
}

fm_status fm_sequence_set_quota(fm_store* store, fm_sequence sequence, int64_t max_resident_chunks) {
  return c::guarded([&] {
    const c::hold s(store, c::kind::store, "store", true);
    if (!s) return s.why();
    s.as<c::store_object>().store->set_quota(c::handle_of(sequence), max_resident_chunks);
    return fm_status(FM_OK);
  });
}

fm_status fm_sequence_truncate(fm_store* store, fm_sequence sequence, int64_t tokens) {
  const c::hold s(store, c::kind::store, "store", true);
  if (!s) return s.why();
  auto& object = s.as<c::store_object>();
  return done(object, object.store->truncate(c::handle_of(sequence), tokens));
}

fm_status fm_sequence_close(fm_store* store, fm_sequence sequence) {
  const c::hold s(store, c::kind::store, "store", true);
  if (!s) return s.why();
  auto& object = s.as<c::store_object>();
  return done(object, object.store->close(c::handle_of(sequence)));
}

fm_status fm_sequence_get_info(fm_store* store, fm_sequence sequence, fm_sequence_info* out) {
  const c::hold s(store, c::kind::store, "store", false);
  if (!s) return s.why();
  auto& object = s.as<c::store_object>();
  sequence_info info;
  if (const status code = object.store->info(c::handle_of(sequence), &info); code != status::ok)
    return done(object, code);
  fm_sequence_info o{};
  o.tokens = info.tokens;
  o.complete_chunks = info.complete_chunks;
  o.resident_chunks = info.resident_chunks;
  o.bad_chunks = info.bad_chunks;
  o.slot_bytes = info.slot_bytes;
  o.index_key_bytes = info.index_key_bytes;
  o.table_bytes = info.table_bytes;
  o.backing_bytes = info.backing_bytes;
  return c::write(out, o, "out");
}

fm_status fm_sequence_resident(fm_store* store, fm_sequence sequence, int32_t* ids, int64_t room,
                               int64_t* count) {
  if (!count) return c::refuse(status::null_data, "count");
  if (room < 0) return c::refuse(status::bad_argument, "room", 0, room);
  if (room > 0 && !ids) return c::refuse(status::null_data, "ids");
  const c::hold s(store, c::kind::store, "store", false);
  if (!s) return s.why();
  auto& object = s.as<c::store_object>();
  resident_set set;
  if (const status code = object.store->resident(c::handle_of(sequence), 0, &set); code != status::ok)
    return done(object, code);
  for (std::int64_t i = 0; i < std::min(room, set.count); ++i) ids[i] = set.chunks[i].id;
  *count = set.count;
  return FM_OK;
}

fm_status fm_sequence_read_chunk(fm_store* store, fm_sequence sequence, int32_t chunk,
                                 fm_managed_tensor** out) {
  return c::guarded([&] {
    if (!out) return c::refuse(status::null_data, "out");
    const c::hold s(store, c::kind::store, "store", false);
    if (!s) return s.why();
    auto& object = s.as<c::store_object>();
    /// What is handed over, in one block.
    struct copy {
      fm_managed_tensor tensor{};
      std::int64_t shape = 0, stride = 1;
      std::vector<std::byte> bytes;
    };
    auto made = std::make_unique<copy>();
    made->bytes.resize(chunk_layout(object.store->geometry()).chunk_bytes());
    made->shape = static_cast<std::int64_t>(made->bytes.size());
    if (const status code = object.store->read_chunk(c::handle_of(sequence), chunk,
                                                     view<std::byte, 1>(made->bytes.data(), made->shape));
        code != status::ok)
      return done(object, code);
    fm_managed_tensor& t = made->tensor;
    t.dl_tensor.data = made->bytes.data();
    t.dl_tensor.device.device_type = FM_CPU;
    t.dl_tensor.ndim = 1;
    t.dl_tensor.dtype.code = FM_UINT;
    t.dl_tensor.dtype.bits = 8;
    t.dl_tensor.dtype.lanes = 1;
    t.dl_tensor.shape = &made->shape;
    t.dl_tensor.strides = &made->stride;
    t.manager_ctx = made.get();
    t.deleter = [](fm_managed_tensor* self) { delete static_cast<copy*>(self->manager_ctx); };
    *out = &made.release()->tensor;
    return fm_status(FM_OK);
  });
}

fm_status fm_append(fm_store* store, const fm_batch_item* items, int64_t num_items, int32_t layer,
                    const fm_tensor* k, const fm_tensor* v, void* stream) {
  const c::hold s(store, c::kind::store, "store", true);
  if (!s) return s.why();
  auto& object = s.as<c::store_object>();
  batch rows;
  tensor<3> key, value;
  stream_ref on = stream_ref::host();
  if (const fm_status code = c::items_of(items, num_items, &rows); code != FM_OK) return code;
  if (const fm_status code = c::floating(k, object.where, "k", &key); code != FM_OK) return code;
  if (const fm_status code = c::floating(v, object.where, "v", &value); code != FM_OK) return code;
  if (const fm_status code = c::stream_of(stream, object.where, &on); code != FM_OK) return code;
  return done(object, object.store->append(rows, layer, key, value, on));
}

fm_status fm_append_index_keys(fm_store* store, fm_sequence sequence, int32_t lane, int64_t first_key,
                               const fm_tensor* keys, void* stream) {
  const c::hold s(store, c::kind::store, "store", true);
  if (!s) return s.why();
  auto& object = s.as<c::store_object>();
  view<const std::byte, 2> rows;
  stream_ref on = stream_ref::host();
  if (const fm_status code = c::bytes(keys, object.where, "keys", &rows); code != FM_OK) return code;
  if (const fm_status code = c::stream_of(stream, object.where, &on); code != FM_OK) return code;
  return done(object, object.store->append_index_keys(c::handle_of(sequence), lane, first_key, rows, on));
}
