// SPDX-License-Identifier: MIT
#include "src/c/device.hpp"

using namespace flashmemory;

namespace {

fm_selector_options default_options() {
  const selector_options d;
  fm_selector_options o{};
  o.struct_size = sizeof(o);
  o.max_sequences = d.max_sequences;
  o.max_rollback_tokens = d.max_rollback_tokens;
  o.stagger = d.stagger;
  o.overlapped = d.apply == apply_mode::overlapped;
  o.max_staleness = d.max_staleness;
  o.late = static_cast<std::int32_t>(d.late);
  o.concurrent_recalls = d.concurrent_recalls;
  o.deadline_ms = static_cast<std::int32_t>(d.deadline.count());
  return o;
}

/// A selector and what it stands on, held for a call that changes both.
struct use {
  c::hold select, store;

  explicit use(fm_selector* handle) noexcept
      : select(handle, c::kind::selector, "select", true),
        store(select ? object().store_slot : nullptr, "select's store", true, static_cast<bool>(select)) {}

  c::selector_object& object() const noexcept { return select.as<c::selector_object>(); }
  explicit operator bool() const noexcept { return select && store; }
  fm_status why() const noexcept { return select ? store.why() : select.why(); }

  fm_status done(status code) const noexcept {
    c::selector_object& s = object();
    if (s.by->made == c::indexer_object::make::callback) {
      auto& callback = static_cast<c::callback_indexer&>(*s.by->index);
      if (std::exchange(callback.has_thrown, false)) return c::note(FM_EXCEPTION, callback.threw.c_str());
    }
    if (std::exchange(s.threads.threw, false)) return c::note(FM_EXCEPTION, "threads.run has thrown");
    return c::result(code, s.select->last_fault());
  }
};

/// The policy of one sequence; null stays null.
struct own_policy {
  selection_policy value;
  const selection_policy* pointer = nullptr;

  fm_status read(const fm_policy* in) {
    if (!in) return FM_OK;
    fm_policy p;
    if (const fm_status code = c::read(in, c::default_policy(), "policy", &p); code != FM_OK) return code;
    value = c::policy_of(p);
    pointer = &value;
    return FM_OK;
  }
};

template <int Rank, class Call>
fm_status observe(fm_selector* handle, const fm_batch_item* items, std::int64_t count, const fm_tensor* shown,
                  const char* name, void* stream, Call&& call) noexcept {
  const use u(handle);
  if (!u) return u.why();
  batch rows;
  tensor<Rank> values;
  stream_ref on = stream_ref::host();
  const c::place where = u.object().over->where;
  if (const fm_status code = c::items_of(items, count, &rows); code != FM_OK) return code;
  if (const fm_status code = c::floating(shown, where, name, &values); code != FM_OK) return code;
  if (const fm_status code = c::stream_of(stream, where, &on); code != FM_OK) return code;
  return u.done(call(*u.object().select, rows, const_tensor<Rank>(values), on));
}

}  // namespace

fm_status fm_init_selector_options(fm_selector_options* out, size_t struct_size) {
  return c::initialise(out, struct_size, default_options(), "out");
}

fm_status fm_selector_open(fm_store* store, fm_indexer* index, const fm_policy* policy,
                           const fm_selector_options* options, fm_selector** out) {
  return c::guarded([&] {
    if (!policy) return c::refuse(status::null_data, "policy");
    if (!out) return c::refuse(status::null_data, "out");
    fm_policy p;
    fm_selector_options o;
    if (const fm_status code = c::read(policy, c::default_policy(), "policy", &p); code != FM_OK) return code;
    if (const fm_status code = c::read(options, default_options(), "options", &o); code != FM_OK) return code;
    if (o.late < 0 || o.late > static_cast<std::int32_t>(late_policy::fail))
      return c::refuse(status::bad_argument, "late", static_cast<std::int32_t>(late_policy::fail), o.late);
    const c::hold s(store, c::kind::store, "store", true);
    if (!s) return s.why();
    const c::hold i(index, c::kind::indexer, "index", false);
    if (!i) return i.why();
    auto object = std::make_unique<c::selector_object>(o.threads);
    object->over = &s.as<c::store_object>();
    object->by = &i.as<c::indexer_object>();
    object->store_slot = s.place();
    object->index_slot = i.place();
    selector_options made;
    made.max_sequences = o.max_sequences;
    made.max_rollback_tokens = o.max_rollback_tokens;
    made.stagger = o.stagger != 0;
    made.apply = o.overlapped ? apply_mode::overlapped : apply_mode::at_once;
    made.max_staleness = o.max_staleness;
    made.late = static_cast<late_policy>(o.late);
    made.concurrent_recalls = o.concurrent_recalls;
    made.deadline = std::chrono::milliseconds(o.deadline_ms);
    made.threads = object->threads.hook();
    tiered_chunk_store& over = *object->over->store;
    object->select = object->over->where == c::place::device
                         ? c::open_device_selector(over, *object->by, c::policy_of(p), made)
                         : std::make_unique<selector>(over, *object->by->index, c::policy_of(p), made);
    void* const handle = c::make_handle(c::kind::selector, object.get());
    if (!handle) return fm_status(FM_NO_MEMORY);
    ++object->store_slot->dependants;
    ++object->index_slot->dependants;
    object.release();
    *out = static_cast<fm_selector*>(handle);
    return fm_status(FM_OK);
  });
}

fm_status fm_selector_close(fm_selector* select) {
  use u(select);
  if (!u) return u.why();
  c::selector_object* const object = &u.object();
  if (const fm_status code = u.select.close("select"); code != FM_OK) return code;
  c::slot *const store = object->store_slot, *const index = object->index_slot;
  delete object;  // gives up its recalls, for which the store is held
  --store->dependants;
  --index->dependants;
  return FM_OK;
}

fm_status fm_attach(fm_selector* select, fm_sequence sequence, const fm_policy* policy) {
  return c::guarded([&] {
    const use u(select);
    if (!u) return u.why();
    own_policy own;
    if (const fm_status code = own.read(policy); code != FM_OK) return code;
    u.object().select->attach(c::handle_of(sequence), own.pointer);
    return fm_status(FM_OK);
  });
}

fm_status fm_attach_fork(fm_selector* select, fm_sequence parent, fm_sequence child,
                         const fm_policy* policy) {
  return c::guarded([&] {
    const use u(select);
    if (!u) return u.why();
    own_policy own;
    if (const fm_status code = own.read(policy); code != FM_OK) return code;
    u.object().select->attach_fork(c::handle_of(parent), c::handle_of(child), own.pointer);
    return fm_status(FM_OK);
  });
}

fm_status fm_detach(fm_selector* select, fm_sequence sequence) {
  const use u(select);
  if (!u) return u.why();
  u.object().select->detach(c::handle_of(sequence));
  return FM_OK;
}

fm_status fm_selector_reads(fm_selector* select, int32_t layer, int32_t kind, int32_t* out) {
  if (!out) return c::refuse(status::null_data, "out");
  if (kind < 0 || kind > static_cast<std::int32_t>(tap_kind::keys))
    return c::refuse(status::bad_argument, "kind", static_cast<std::int32_t>(tap_kind::keys), kind);
  const c::hold s(select, c::kind::selector, "select", false);
  if (!s) return s.why();
  *out = s.as<c::selector_object>().select->reads(layer, static_cast<tap_kind>(kind));
  return FM_OK;
}

fm_status fm_observe(fm_selector* select, const fm_batch_item* items, int64_t num_items, int32_t layer,
                     const fm_tensor* hidden, void* stream) {
  return observe<2>(select, items, num_items, hidden, "hidden", stream,
                    [&](selector& s, batch rows, const_tensor<2> values, stream_ref on) {
                      return s.observe(rows, layer, values, on);
                    });
}

fm_status fm_observe_queries(fm_selector* select, const fm_batch_item* items, int64_t num_items,
                             int32_t layer, const fm_tensor* queries, void* stream) {
  return observe<2>(select, items, num_items, queries, "queries", stream,
                    [&](selector& s, batch rows, const_tensor<2> values, stream_ref on) {
                      return s.observe_queries(rows, layer, values, on);
                    });
}

fm_status fm_observe_keys(fm_selector* select, const fm_batch_item* items, int64_t num_items, int32_t layer,
                          const fm_tensor* keys, void* stream) {
  return observe<3>(select, items, num_items, keys, "keys", stream,
                    [&](selector& s, batch rows, const_tensor<3> values, stream_ref on) {
                      return s.observe_keys(rows, layer, values, on);
                    });
}

fm_status fm_select_chunks(fm_selector* select, const fm_batch_item* items, int64_t num_items, void* stream) {
  const use u(select);
  if (!u) return u.why();
  batch rows;
  stream_ref on = stream_ref::host();
  if (const fm_status code = c::items_of(items, num_items, &rows); code != FM_OK) return code;
  if (const fm_status code = c::stream_of(stream, u.object().over->where, &on); code != FM_OK) return code;
  return u.done(select_chunks(*u.object().select, rows, on));
}

fm_status fm_request_refresh(fm_selector* select, fm_sequence sequence) {
  const use u(select);
  if (!u) return u.why();
  return u.done(u.object().select->request_refresh(c::handle_of(sequence)));
}

fm_status fm_report_attention_mass(fm_selector* select, fm_sequence sequence, float mass) {
  const use u(select);
  if (!u) return u.why();
  return u.done(u.object().select->report_attention_mass(c::handle_of(sequence), mass));
}

fm_status fm_report(fm_selector* select, fm_sequence sequence, fm_selection_report* out) {
  const c::hold s(select, c::kind::selector, "select", false);
  if (!s) return s.why();
  const selector& by = *s.as<c::selector_object>().select;
  selection_report r;
  if (const status code = by.report(c::handle_of(sequence), &r); code != status::ok)
    return c::result(code, by.last_fault());
  fm_selection_report o{};
  o.reason = static_cast<std::int32_t>(r.reason);
  o.stage = static_cast<std::int32_t>(r.stage);
  o.position = r.position;
  o.complete_chunks = r.complete_chunks;
  o.budget = r.budget;
  o.chosen_chunks = r.plan.chunks;
  o.refreshes = r.refreshes;
  o.staleness = r.staleness;
  o.hits = r.recall.hits;
  o.recalled = r.recall.recalled;
  o.refused = r.recall.refused;
  o.evicted = r.recall.evicted;
  o.bytes = r.recall.bytes;
  o.unreadable = r.recall.unreadable;
  o.score_seconds = r.score_seconds;
  o.recall_seconds = r.recall_seconds;
  return c::write(out, o, "out");
}
