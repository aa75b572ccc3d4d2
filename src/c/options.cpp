// SPDX-License-Identifier: MIT
// The structs of C, their defaults, and what of C++ they stand for.
#include "src/c/objects.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {
namespace {

/// An enumerator of C++ by its number.
template <class E>
E enumerator(std::int32_t value, E last, const char* name) {
  if (value < 0 || value > static_cast<std::int32_t>(last))
    throw argument_error(status::bad_argument, std::string(name) + ": " + std::to_string(value) +
                                                   " is not one of 0 to " +
                                                   std::to_string(static_cast<std::int32_t>(last)));
  return static_cast<E>(value);
}

}  // namespace

fm_store_options default_store_options() {
  const store_options d;
  fm_store_options o{};
  o.struct_size = sizeof(o);
  o.type = FM_BF16;
  o.entries_per_chunk = d.geometry.entries_per_chunk;
  o.index_keys.dim = d.geometry.index_keys.dim;
  o.index_keys.tokens_per_key = d.geometry.index_keys.tokens_per_key;
  o.max_sequences = d.max_sequences;
  o.deadline_ms = 5000;
  return o;
}

store_options store_options_of(const fm_store_options& o) {
  store_options out;
  kv_geometry& g = out.geometry;
  g.layers = o.layers;
  g.kv_heads = o.kv_heads;
  g.key_dim = o.key_dim;
  g.value_dim = o.value_dim;
  g.type = enumerator(o.type, dtype::f16, "type");
  g.entries_per_chunk = o.entries_per_chunk;
  g.index_keys.lanes = o.index_keys.lanes;
  g.index_keys.dim = o.index_keys.dim;
  g.index_keys.type = enumerator(o.index_keys.type, index_key_type::mxfp4, "index_keys.type");
  g.index_keys.tokens_per_key = o.index_keys.tokens_per_key;
  g.index_keys.layout = enumerator(o.index_keys.layout, index_key_layout::planar, "index_keys.layout");
  out.fast_bytes = o.fast_bytes;
  out.backing_bytes = o.backing_bytes;
  out.max_sequences = o.max_sequences;
  if (o.backing_path) out.backing_path = o.backing_path;
  out.transition_chunks = o.transition_chunks;
  out.verify_ram = o.verify_ram != 0;
  out.scrub = o.scrub != 0;
  return out;
}

fm_policy c_policy(const selection_policy& p) {
  fm_policy o{};
  o.struct_size = sizeof(o);
  o.mode = static_cast<std::int32_t>(p.mode);
  o.interval = p.interval;
  o.sink_chunks = p.sink_chunks;
  o.recent_chunks = p.recent_chunks;
  o.budget_fraction = p.budget_fraction;
  o.max_chunks = p.max_chunks;
  o.budget_bytes = p.budget_bytes;
  o.min_chunks = p.min_chunks;
  o.threshold = p.threshold;
  o.hysteresis = p.hysteresis;
  o.hold = p.hold;
  o.select_in_prompts = p.select_in_prompts;
  o.fallback_max_dropped = p.fallback.max_dropped;
  o.fallback_min_attention_mass = p.fallback.min_attention_mass;
  o.fallback_widen_factor = p.fallback.widen_factor;
  o.fallback_patience = p.fallback.patience;
  o.fallback_recover_after = p.fallback.recover_after;
  return o;
}

fm_policy default_policy() { return c_policy(selection_policy{}); }

selection_policy policy_of(const fm_policy& p) {
  selection_policy o;
  o.mode = enumerator(p.mode, selection_mode::threshold, "mode");
  o.interval = p.interval;
  o.sink_chunks = p.sink_chunks;
  o.recent_chunks = p.recent_chunks;
  o.budget_fraction = p.budget_fraction;
  o.max_chunks = p.max_chunks;
  o.budget_bytes = p.budget_bytes;
  o.min_chunks = p.min_chunks;
  o.threshold = p.threshold;
  o.hysteresis = p.hysteresis;
  o.hold = p.hold;
  o.select_in_prompts = p.select_in_prompts != 0;
  o.fallback.max_dropped = p.fallback_max_dropped;
  o.fallback.min_attention_mass = p.fallback_min_attention_mass;
  o.fallback.widen_factor = p.fallback_widen_factor;
  o.fallback.patience = p.fallback_patience;
  o.fallback.recover_after = p.fallback_recover_after;
  return o;
}

fm_sequence_options default_sequence_options() {
  const sequence_options d;
  fm_sequence_options o{};
  o.struct_size = sizeof(o);
  o.sink_chunks = d.sink_chunks;
  o.recent_chunks = d.recent_chunks;
  return o;
}

sequence_options sequence_options_of(const fm_sequence_options& o) {
  sequence_options out;
  out.max_tokens = o.max_tokens;
  out.max_resident_chunks = o.max_resident_chunks;
  out.sink_chunks = o.sink_chunks;
  out.recent_chunks = o.recent_chunks;
  return out;
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory

using namespace flashmemory;

fm_status fm_init_store_options(fm_store_options* out, size_t struct_size) {
  return c::initialise(out, struct_size, c::default_store_options(), "out");
}
fm_status fm_init_policy(fm_policy* out, size_t struct_size) {
  return c::initialise(out, struct_size, c::default_policy(), "out");
}
fm_status fm_init_sequence_options(fm_sequence_options* out, size_t struct_size) {
  return c::initialise(out, struct_size, c::default_sequence_options(), "out");
}

fm_status fm_sequence_options_for(fm_store* store, const fm_policy* policy, int64_t max_tokens,
                                  int64_t late_tokens, fm_sequence_options* out) {
  return c::guarded([&] {
    const c::hold s(store, c::kind::store, "store", false);
    if (!s) return s.why();
    fm_policy p;
    if (const fm_status code = c::read(policy, c::default_policy(), "policy", &p); code != FM_OK) return code;
    const sequence_options made = sequence_options_for(
        c::policy_of(p), s.as<c::store_object>().store->geometry(), max_tokens, late_tokens);
    fm_sequence_options o{};
    o.max_tokens = made.max_tokens;
    o.max_resident_chunks = made.max_resident_chunks;
    o.sink_chunks = made.sink_chunks;
    o.recent_chunks = made.recent_chunks;
    return c::write(out, o, "out");
  });
}

fm_status fm_store_bytes_for(const fm_store_options* options, const fm_sequence_options* each,
                             int32_t sequences, uint64_t* fast_bytes, uint64_t* backing_bytes) {
  return c::guarded([&] {
    if (!options) return c::refuse(status::null_data, "options");
    if (!each) return c::refuse(status::null_data, "each");
    if (!fast_bytes || !backing_bytes) return c::refuse(status::null_data, "fast_bytes or backing_bytes");
    fm_store_options o;
    fm_sequence_options e;
    if (const fm_status code = c::read(options, c::default_store_options(), "options", &o); code != FM_OK)
      return code;
    if (const fm_status code = c::read(each, c::default_sequence_options(), "each", &e); code != FM_OK)
      return code;
    const store_bytes made = store_bytes_for(c::store_options_of(o), c::sequence_options_of(e), sequences);
    *fast_bytes = made.fast;
    *backing_bytes = made.backing;
    return fm_status(FM_OK);
  });
}

fm_status fm_recommended_policy(const char* path, fm_policy* out) {
  return c::guarded([&] {
    if (!path) return c::refuse(status::null_data, "path");
    return c::write(out, c::c_policy(recommended_policy(path)), "out");
  });
}
