// SPDX-License-Identifier: MIT
#include "src/c/device.hpp"

using namespace flashmemory;

namespace {

struct attention_object {
  c::engine_threads threads;
  c::store_object* over = nullptr;
  c::slot* store_slot = nullptr;
  std::vector<std::byte> scratch;                  ///< of a store in host memory
  std::unique_ptr<c::device_attention> on_device;  ///< of one on a device

  explicit attention_object(const fm_threads& t) noexcept : threads(t) {}
};

fm_attention_options default_attention() {
  fm_attention_options o{};
  o.struct_size = sizeof(o);
  o.max_tokens = 1;
  o.max_items = 1;
  return o;
}

fm_attend_options default_attend() {
  fm_attend_options o{};
  o.struct_size = sizeof(o);
  return o;
}

/// What an option of the caller's asks for.
fm_status read(const fm_attend_options* in, c::place where, attend_options* out) noexcept {
  fm_attend_options o;
  if (const fm_status code = c::read(in, default_attend(), "options", &o); code != FM_OK) return code;
  out->softmax_scale = o.softmax_scale;
  out->logit_soft_cap = o.logit_soft_cap;
  if (o.sink_logits) {
    view<float, 1> sinks;
    if (const fm_status code = c::floats(o.sink_logits, where, "sink_logits", &sinks); code != FM_OK)
      return code;
    out->sink_logits = sinks;
  }
  if (o.lse)
    if (const fm_status code = c::floats(o.lse, where, "lse", &out->lse); code != FM_OK) return code;
  out->reach = o.everything ? attend_reach::everything : attend_reach::resident;
  out->leave_out_unreadable = o.leave_out_unreadable != 0;
  out->left_out = o.left_out;
  return FM_OK;
}

}  // namespace

fm_status fm_init_attention_options(fm_attention_options* out, size_t struct_size) {
  return c::initialise(out, struct_size, default_attention(), "out");
}
fm_status fm_init_attend_options(fm_attend_options* out, size_t struct_size) {
  return c::initialise(out, struct_size, default_attend(), "out");
}

fm_status fm_attention_open(fm_store* store, const fm_attention_options* options, fm_attention** out) {
  return c::guarded([&] {
    if (!options) return c::refuse(status::null_data, "options");
    if (!out) return c::refuse(status::null_data, "out");
    fm_attention_options o;
    if (const fm_status code = c::read(options, default_attention(), "options", &o); code != FM_OK)
      return code;
    if (o.max_tokens < 1) return c::refuse(status::bad_argument, "max_tokens", 1, o.max_tokens);
    if (o.max_items < 1) return c::refuse(status::bad_argument, "max_items", 1, o.max_items);
    if (o.max_chunks < 1) return c::refuse(status::bad_argument, "max_chunks", 1, o.max_chunks);
    const c::hold s(store, c::kind::store, "store", false);
    if (!s) return s.why();
    auto object = std::make_unique<attention_object>(o.threads);
    object->over = &s.as<c::store_object>();
    object->store_slot = s.place();
    tiered_chunk_store& over = *object->over->store;
    if (o.query_heads < 1 || o.query_heads % over.geometry().kv_heads != 0)
      return c::refuse(status::bad_argument, "query_heads: is no multiple of kv_heads",
                       over.geometry().kv_heads, o.query_heads);
    if (object->over->where == c::place::device) {
      object->on_device = c::open_device_attention(over, o);
    } else {
      prompt_extent prompts;
      prompts.rows = o.max_tokens;
      prompts.items = o.max_items;
      prompts.streamed = true;
      prompts.concurrency = object->threads.hook().concurrency;
      const std::size_t bytes =
          attend_workspace_bytes(over.geometry(), o.query_heads, o.max_tokens, o.max_chunks, prompts);
      object->scratch.resize(bytes);
    }
    void* const handle = c::make_handle(c::kind::attention, object.get());
    if (!handle) return fm_status(FM_NO_MEMORY);
    ++object->store_slot->dependants;
    object.release();
    *out = static_cast<fm_attention*>(handle);
    return fm_status(FM_OK);
  });
}

fm_status fm_attention_close(fm_attention* attention) {
  c::hold a(attention, c::kind::attention, "attention", true);
  if (!a) return a.why();
  auto* const object = &a.as<attention_object>();
  if (const fm_status code = a.close("attention"); code != FM_OK) return code;
  c::slot* const store = object->store_slot;
  delete object;
  --store->dependants;
  return FM_OK;
}

fm_status fm_sparse_attend(fm_attention* attention, const fm_batch_item* items, int64_t num_items,
                           int32_t layer, const fm_tensor* q, const fm_tensor* out,
                           const fm_attend_options* options, void* stream) {
  const c::hold a(attention, c::kind::attention, "attention", true);
  if (!a) return a.why();
  auto& object = a.as<attention_object>();
  const c::hold s(object.store_slot, "attention's store", false);
  if (!s) return s.why();
  const c::place where = object.over->where;
  batch rows;
  tensor<3> query, result;
  stream_ref on = stream_ref::host();
  attend_options how;
  if (const fm_status code = c::items_of(items, num_items, &rows); code != FM_OK) return code;
  if (const fm_status code = c::floating(q, where, "q", &query); code != FM_OK) return code;
  if (const fm_status code = c::floating(out, where, "out", &result); code != FM_OK) return code;
  if (const fm_status code = read(options, where, &how); code != FM_OK) return code;
  if (const fm_status code = c::stream_of(stream, where, &on); code != FM_OK) return code;
  fault f;
  how.error = &f;
  how.threads = object.threads.hook();
  how.scratch = {object.scratch.data(), object.scratch.size()};
  const tiered_chunk_store& over = *object.over->store;
  const status code = object.on_device ? object.on_device->attend(over, rows, layer, query, result, how, on)
                                       : sparse_attend(over, rows, layer, query, result, how, on);
  if (std::exchange(object.threads.threw, false)) return c::note(FM_EXCEPTION, "threads.run has thrown");
  return c::result(code, f.code == code ? f : over.last_fault());
}
