// SPDX-License-Identifier: MIT
#include <algorithm>

#include "src/select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::key_input;
using detail::key_source;
using detail::row_ring;
using detail::served_sequence;

/// Whether a sequence of `tokens` tokens has what the key encoder needs to see of it. With nothing before its start that
/// is so at 0 tokens, wherever it has been.
bool selector::impl::can_go_on(const key_source& source, const row_ring& ring,
                               std::int64_t tokens) const noexcept {
  const std::int64_t needed = std::max<std::int64_t>(
      detail::first_needed(tokens, geometry.index_keys.tokens_per_key, source.window), 0);
  const bool in_reach = tokens >= ring.end - options.max_rollback_tokens && needed >= ring.first();
  return tokens <= ring.end && (in_reach || needed >= tokens);
}

bool selector::impl::allows_rollback(sequence_handle sequence, std::int64_t tokens,
                                     std::int64_t* lowest) const noexcept {
  const served_sequence* const s = find(sequence);
  if (s == nullptr || s->policy.mode == selection_mode::everything) return true;
  bool follows = true;
  for (std::size_t k = 0; k < s->keys.size(); ++k) {
    const row_ring& ring = s->keys[k].ring;
    // Tokens that were appended and not observed are no loss.
    const std::int64_t to = std::min(tokens, ring.end);
    if (can_go_on(key_sources[k], ring, to)) continue;
    follows = false;
    std::int64_t least = to;
    while (least < ring.end && !can_go_on(key_sources[k], ring, least)) ++least;
    *lowest = std::max(*lowest, least);
  }
  return follows;
}

status selector::impl::check_key_order(const served_sequence& s, std::size_t source,
                                       const batch_item& item) const noexcept {
  const key_source& from = key_sources[source];
  const key_input& input = s.keys[source];
  const row_ring& ring = input.ring;
  const std::int64_t tokens_per_key = geometry.index_keys.tokens_per_key;
  const auto out_of_order = [&](std::int64_t expected, std::int64_t actual, std::int32_t lane,
                                const char* what) {
    fault f;
    f.code = status::out_of_order;
    f.sequence = item.sequence.index;
    f.layer = from.layer;
    f.lane = lane;
    f.expected = expected;
    f.actual = actual;
    f.what = what;
    return fail(f);
  };

  if (!can_go_on(from, ring, item.position))
    return out_of_order(ring.end, item.position, -1,
                        item.position > ring.end
                            ? "position of observed tokens"
                            : "position of observed tokens: further back than max_rollback_tokens");

  const std::int64_t before = item.position / tokens_per_key;
  const std::int64_t after = (item.position + item.num_tokens) / tokens_per_key;
  for (const std::int32_t lane : from.lanes) {
    index_key_pages pages;
    if (const status code = store.index_keys(item.sequence, lane, &pages); code != status::ok)
      return store_failed(code, item.sequence, "keys");
    if (pages.keys != before && !(input.torn && pages.keys > before && pages.keys <= after))
      return out_of_order(before, pages.keys, lane, "index keys in the store");
  }
  return status::ok;
}

status selector::impl::observe(batch items, std::int32_t layer, tap_kind kind, const_tensor<3> rows,
                               stream_ref stream) noexcept {
  std::int64_t width = -1;
  for (const auto& source : query_sources)
    if (source.layer == layer && source.kind == kind) width = source.width;
  for (const auto& source : key_sources)
    if (source.layer == layer && source.kind == kind) width = source.width;
  if (width < 0) return status::ok;

  std::int64_t tokens = 0;
  if (const status code = check_items(items, &tokens); code != status::ok) return code;
  fault f;
  f.layer = layer;
  f.what = kind == tap_kind::hidden ? "hidden" : detail::name_of(kind);
  if (rows.type != dtype::f32 && rows.type != dtype::bf16 && rows.type != dtype::f16) {
    f.code = status::bad_dtype;
    return fail(f);
  }
  // Of K both extents count, or another model's would pass whose product is the same.
  const bool right_heads = kind != tap_kind::keys || rows.shape[1] == geometry.kv_heads;
  if (const std::int64_t found = rows.shape[1] * rows.shape[2];
      rows.shape[0] != tokens || found != width || !right_heads) {
    f.code = status::bad_shape;
    f.expected = rows.shape[0] != tokens ? tokens : found != width ? width : geometry.kv_heads;
    f.actual = rows.shape[0] != tokens ? rows.shape[0] : found != width ? found : rows.shape[1];
    return fail(f);
  }
  if (tokens > 0 && rows.data == nullptr) {
    f.code = status::null_data;
    return fail(f);
  }
  const auto is_key_source = [&](std::size_t k) {
    return key_sources[k].kind == kind && key_sources[k].layer == layer;
  };
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (items(i).empty()) continue;
    const served_sequence& s = *find(items(i).sequence);
    if (s.policy.mode == selection_mode::everything) continue;
    for (std::size_t k = 0; k < key_sources.size(); ++k)
      if (is_key_source(k))
        if (const status code = check_key_order(s, k, items(i)); code != status::ok) return code;
  }

  std::int64_t from = 0, count = 0;
  for (std::int64_t i = 0; i < items.shape[0]; from += items(i).num_tokens, ++i) {
    if (items(i).empty()) continue;
    served_sequence& s = *find(items(i).sequence);
    if (s.policy.mode == selection_mode::everything) continue;
    observed[static_cast<std::size_t>(count++)] = {&s, items(i).position, items(i).num_tokens, from};
  }
  if (count == 0) return status::ok;
  const status code = scoring->observe(view<const detail::observed_rows, 1>(observed.data(), count), layer,
                                       kind, rows, stream, &counters.nan_keys, &f);
  return code == status::ok ? code : fail(f);
}

status selector::observe(batch items, std::int32_t layer, const_tensor<2> hidden,
                         stream_ref stream) noexcept {
  return impl_->observe(items, layer, tap_kind::hidden, detail::one_head(hidden), stream);
}

status selector::observe_queries(batch items, std::int32_t layer, const_tensor<2> queries,
                                 stream_ref stream) noexcept {
  return impl_->observe(items, layer, tap_kind::queries, detail::one_head(queries), stream);
}

status selector::observe_keys(batch items, std::int32_t layer, const_tensor<3> k,
                              stream_ref stream) noexcept {
  return impl_->observe(items, layer, tap_kind::keys, k, stream);
}

}  // namespace v0
}  // namespace flashmemory
