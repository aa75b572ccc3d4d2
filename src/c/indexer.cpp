// SPDX-License-Identifier: MIT
#include "src/c/objects.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {
namespace {

indexer_taps callback_taps(const fm_query_tap* taps, std::int64_t count, bool log_odds) {
  indexer_taps out;
  out.name = "callback";
  out.log_odds = log_odds;
  for (std::int64_t i = 0; i < count; ++i) {
    if (taps[i].kind < 0 || taps[i].kind > static_cast<std::int32_t>(tap_kind::keys) || taps[i].width < 1 ||
        taps[i].layer < 0)
      throw argument_error(status::bad_argument, "taps[" + std::to_string(i) + "]: kind, width or layer");
    out.queries.push_back({taps[i].layer, static_cast<tap_kind>(taps[i].kind), taps[i].width});
  }
  return out;
}

fm_status hand_over(std::unique_ptr<indexer> index, indexer_object::make made, fm_indexer** out) {
  auto object = std::make_unique<indexer_object>();
  object->index = std::move(index);
  object->made = made;
  void* const handle = make_handle(kind::indexer, object.get());
  if (!handle) return FM_NO_MEMORY;
  object.release();
  *out = static_cast<fm_indexer*>(handle);
  return FM_OK;
}

}  // namespace

callback_indexer::callback_indexer(fm_score_callback callback, void* context, const fm_query_tap* taps,
                                   std::int64_t count, bool log_odds)
    : indexer(callback_taps(taps, count, log_odds)), score_(callback), context_(context) {}

status callback_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  fm_score_request r;
  r.sequence = {request.sequence.index, request.sequence.generation};
  r.position = request.position;
  r.chunks = request.chunks;
  r.num_queries = static_cast<std::int64_t>(taps().queries.size());
  r.queries = request.queries;
  try {
    const fm_status code = score_(context_, &r, scores.data);
    return code >= FM_OK && code <= FM_TIMED_OUT ? static_cast<status>(code) : status::bad_argument;
  } catch (const std::exception& e) {
    has_thrown = true;
    try {
      threw = e.what();
    } catch (...) {
      threw.clear();
    }
  } catch (...) {
    has_thrown = true;
    threw.clear();
  }
  return status::bad_argument;
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory

using namespace flashmemory;

fm_status fm_indexer_load(const char* path, fm_indexer** out) {
  return c::guarded([&] {
    if (!path) return c::refuse(status::null_data, "path");
    if (!out) return c::refuse(status::null_data, "out");
    return c::hand_over(std::make_unique<dual_encoder_indexer>(load_dual_encoder(path)),
                        c::indexer_object::make::dual_encoder, out);
  });
}

fm_status fm_indexer_recency(fm_indexer** out) {
  return c::guarded([&] {
    if (!out) return c::refuse(status::null_data, "out");
    return c::hand_over(std::make_unique<recency_indexer>(), c::indexer_object::make::other, out);
  });
}

fm_status fm_indexer_quest(const fm_store_options* geometry, int32_t query_heads, int32_t max_sequences,
                           int64_t max_chunks, float softmax_scale, fm_indexer** out) {
  return c::guarded([&] {
    if (!geometry) return c::refuse(status::null_data, "geometry");
    if (!out) return c::refuse(status::null_data, "out");
    fm_store_options o;
    if (const fm_status code = c::read(geometry, c::default_store_options(), "geometry", &o); code != FM_OK)
      return code;
    return c::hand_over(std::make_unique<quest_indexer>(c::store_options_of(o).geometry, query_heads,
                                                        max_sequences, max_chunks, softmax_scale),
                        c::indexer_object::make::other, out);
  });
}

namespace {

fm_pooled_keys_options default_pooled_keys() {
  const pooled_keys_config d;
  fm_pooled_keys_options o{};
  o.struct_size = sizeof(o);
  o.tokens_per_key = d.tokens_per_key;
  o.type = static_cast<std::int32_t>(d.type);
  o.query_tokens = d.query_tokens;
  return o;
}

}  // namespace

fm_status fm_init_pooled_keys_options(fm_pooled_keys_options* out, size_t struct_size) {
  return c::initialise(out, struct_size, default_pooled_keys(), "out");
}

fm_status fm_indexer_pooled_keys(const fm_pooled_keys_options* options, fm_indexer** out) {
  return c::guarded([&] {
    if (!options) return c::refuse(status::null_data, "options");
    if (!out) return c::refuse(status::null_data, "out");
    fm_pooled_keys_options o;
    if (const fm_status code = c::read(options, default_pooled_keys(), "options", &o); code != FM_OK)
      return code;
    if (o.num_lanes < 0 || o.num_lanes > 65536)
      return c::refuse(status::bad_argument, "num_lanes", 65536, o.num_lanes);
    if (o.num_lanes > 0 && !o.lanes) return c::refuse(status::null_data, "lanes");
    if (o.type < 0 || o.type > static_cast<std::int32_t>(index_key_type::mxfp4))
      return c::refuse(status::bad_argument, "type", static_cast<std::int32_t>(index_key_type::mxfp4),
                       o.type);
    pooled_keys_config config;
    config.query_heads = o.query_heads;
    config.kv_heads = o.kv_heads;
    config.key_dim = o.key_dim;
    config.dim = o.dim;
    config.tokens_per_key = o.tokens_per_key;
    config.type = static_cast<index_key_type>(o.type);
    config.query_tokens = o.query_tokens;
    config.softmax_scale = o.softmax_scale;
    config.uncounted_sink_chunks = o.uncounted_sink_chunks;
    config.uncounted_recent_chunks = o.uncounted_recent_chunks;
    const std::int64_t dim = o.dim == 0 ? o.key_dim : o.dim;
    if (o.key_dim < 1 || o.key_dim > 65536 || dim < 1 || dim > 65536)
      return c::refuse(status::bad_argument, "key_dim or dim", 65536, o.key_dim);
    for (std::int64_t i = 0; i < o.num_lanes; ++i) {
      const fm_pooled_keys_lane& l = o.lanes[i];
      pooled_keys_lane lane;
      lane.layer = l.layer;
      lane.kv_head = l.kv_head;
      if (l.num_query_heads < 0 || l.num_query_heads > 65536)
        return c::refuse(status::bad_argument, "num_query_heads", 65536, l.num_query_heads);
      if (l.query_heads) lane.query_heads.assign(l.query_heads, l.query_heads + l.num_query_heads);
      if (l.key_projection) lane.key_projection.assign(l.key_projection, l.key_projection + dim * o.key_dim);
      if (l.query_projection)
        lane.query_projection.assign(l.query_projection, l.query_projection + dim * o.key_dim);
      config.lanes.push_back(std::move(lane));
    }
    return c::hand_over(std::make_unique<pooled_keys_indexer>(std::move(config)),
                        c::indexer_object::make::pooled_keys, out);
  });
}

fm_status fm_indexer_callback(fm_score_callback score, void* context, const fm_query_tap* taps,
                              int64_t num_taps, int32_t log_odds, fm_indexer** out) {
  return c::guarded([&] {
    if (!score) return c::refuse(status::null_data, "score");
    if (!out) return c::refuse(status::null_data, "out");
    if (num_taps < 0 || num_taps > 65536) return c::refuse(status::bad_argument, "num_taps", 65536, num_taps);
    if (num_taps > 0 && !taps) return c::refuse(status::null_data, "taps");
    return c::hand_over(std::make_unique<c::callback_indexer>(score, context, taps, num_taps, log_odds != 0),
                        c::indexer_object::make::callback, out);
  });
}

fm_status fm_indexer_reads(fm_indexer* index, fm_index_key_geometry* out) {
  if (!out) return c::refuse(status::null_data, "out");
  const c::hold i(index, c::kind::indexer, "index", false);
  if (!i) return i.why();
  const index_key_geometry& g = i.as<c::indexer_object>().index->taps().reads;
  *out = {g.lanes, g.dim, static_cast<std::int32_t>(g.type), g.tokens_per_key,
          static_cast<std::int32_t>(g.layout)};
  return FM_OK;
}

fm_status fm_indexer_close(fm_indexer* index) {
  c::hold i(index, c::kind::indexer, "index", true);
  if (!i) return i.why();
  auto* const object = &i.as<c::indexer_object>();
  if (const fm_status code = i.close("index"); code != FM_OK) return code;
  delete object;
  return FM_OK;
}
