// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>

#include "select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::key_input;
using detail::key_source;
using detail::row_ring;
using detail::served_sequence;

namespace {

/// First token that the key after `tokens` tokens sees; negative ones are the zeros before the start.
std::int64_t first_needed(std::int64_t tokens, std::int64_t tokens_per_key, std::int64_t window) noexcept {
  return (tokens / tokens_per_key + 1) * tokens_per_key - window;
}

/// Stores refuse keys that are not numbers. A key that NaN or Inf went into says nothing about its tokens:
/// all zero, it scores what an unrelated key scores.
bool neutralise(std::byte* key, std::int32_t key_bytes) noexcept {
  float scale;
  std::memcpy(&scale, key + key_bytes - 4, sizeof scale);
  const auto is_nan = [](std::byte b) { return (b & std::byte{0x7f}) == std::byte{0x7f}; };
  if (std::isfinite(scale) && std::none_of(key, key + key_bytes - 4, is_nan)) return false;
  std::memset(key, 0, static_cast<std::size_t>(key_bytes));
  return true;
}

}  // namespace

status selector::impl::check_key_order(const served_sequence& s, std::size_t source,
                                       const batch_item& item) const noexcept {
  const key_source& from = key_sources[source];
  const key_input& input = s.keys[source];
  const row_ring& ring = input.ring;
  const std::int64_t tokens_per_key = geometry.tokens_per_key;
  const auto out_of_order = [&](std::int64_t expected, std::int64_t actual, std::int32_t stream,
                                const char* what) {
    fault f;
    f.code = status::out_of_order;
    f.sequence = item.sequence.index;
    f.layer = from.layer;
    f.stream = stream;
    f.expected = expected;
    f.actual = actual;
    f.what = what;
    return fail(f);
  };

  const std::int64_t needed =
      std::max<std::int64_t>(first_needed(item.position, tokens_per_key, from.window), 0);
  const bool in_reach = item.position >= ring.end - options.max_rollback_tokens && needed >= ring.first();
  if (item.position > ring.end || !(in_reach || needed >= item.position))
    return out_of_order(ring.end, item.position, -1, "position of observed tokens");

  const std::int64_t before = item.position / tokens_per_key;
  const std::int64_t after = (item.position + item.num_tokens) / tokens_per_key;
  for (const std::int32_t stream : from.streams) {
    key_pages pages;
    if (const status code = store.keys(item.sequence, stream, &pages); code != status::ok)
      return store_failed(code, item.sequence, "keys");
    if (pages.keys != before && !(input.torn && pages.keys > before && pages.keys <= after))
      return out_of_order(before, pages.keys, stream, "index keys in the store");
  }
  return status::ok;
}

status selector::impl::encode(served_sequence& s, std::size_t source, const batch_item& item,
                              const_tensor<2> rows, std::int64_t from) noexcept {
  key_input& input = s.keys[source];
  const std::int64_t tokens_per_key = geometry.tokens_per_key, width = rows.shape[1];
  const std::int64_t end = (item.position + item.num_tokens) / tokens_per_key;
  input.torn = true;
  for (const std::int32_t stream : key_sources[source].streams) {
    const std::int64_t window = index.key_taps()(stream).window;
    key_pages pages;
    if (const status code = store.keys(item.sequence, stream, &pages); code != status::ok)
      return store_failed(code, item.sequence, "keys");
    for (std::int64_t key = pages.keys; key < end;) {
      const std::int64_t count = std::min(key_block, end - key);
      const std::int64_t first = (key + 1) * tokens_per_key - window;
      const std::int64_t seen = (count - 1) * tokens_per_key + window;
      view<const float, 2> seen_rows(key_rows, seen, width);
      if (first >= item.position && rows.type == dtype::f32 && rows.stride[1] == 1 &&
          rows.stride[0] == width) {
        seen_rows.data = static_cast<const float*>(rows.data) + (from + first - item.position) * width;
      } else {
        for (std::int64_t r = 0; r < seen; ++r) {
          const std::int64_t token = first + r;
          float* const out = key_rows + r * width;
          if (token >= item.position)
            detail::load_row(rows, from + token - item.position, out);
          else if (token < 0)
            std::fill_n(out, width, 0.0f);
          else
            std::copy_n(input.ring.row(token), width, out);
        }
      }
      const view<std::byte, 2> out(key_out, count, geometry.key_bytes);
      if (const status code = index.encode_keys(stream, seen_rows, out, scratch, options.threads);
          code != status::ok) {
        fault f;
        f.code = code;
        f.sequence = item.sequence.index;
        f.stream = stream;
        f.what = "encode_keys";
        return fail(f);
      }
      for (std::int64_t k = 0; k < count; ++k)
        counters.nan_keys += neutralise(key_out + k * geometry.key_bytes, geometry.key_bytes);
      if (const status code = store.append_keys(item.sequence, stream, key, out, stream_ref::host());
          code != status::ok)
        return store_failed(code, item.sequence, "append_keys");
      key += count;
    }
  }
  input.torn = false;
  input.ring.push(item.position, item.num_tokens, rows, from);
  return status::ok;
}

status selector::impl::observe(batch items, std::int32_t layer, tap_kind kind,
                               const_tensor<2> rows) noexcept {
  std::int64_t width = -1;
  for (const auto& source : query_sources)
    if (source.layer == layer && source.kind == kind) width = source.width;
  if (kind == tap_kind::hidden)
    for (const auto& source : key_sources)
      if (source.layer == layer) width = source.width;
  if (width < 0) return status::ok;

  std::int64_t tokens = 0;
  if (const status code = check_items(items, &tokens); code != status::ok) return code;
  fault f;
  f.layer = layer;
  f.what = kind == tap_kind::hidden ? "hidden" : "queries";
  if (rows.type != dtype::f32 && rows.type != dtype::bf16 && rows.type != dtype::f16) {
    f.code = status::bad_dtype;
    return fail(f);
  }
  if (rows.shape[0] != tokens || rows.shape[1] != width) {
    f.code = status::bad_shape;
    f.expected = rows.shape[0] != tokens ? tokens : width;
    f.actual = rows.shape[0] != tokens ? rows.shape[0] : rows.shape[1];
    return fail(f);
  }
  if (tokens > 0 && rows.data == nullptr) {
    f.code = status::null_data;
    return fail(f);
  }
  const auto is_key_source = [&](std::size_t k) {
    return kind == tap_kind::hidden && key_sources[k].layer == layer;
  };
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const served_sequence& s = *find(items(i).sequence);
    if (s.policy.mode == selection_mode::everything) continue;
    for (std::size_t k = 0; k < key_sources.size(); ++k)
      if (is_key_source(k))
        if (const status code = check_key_order(s, k, items(i)); code != status::ok) return code;
  }

  std::int64_t from = 0;
  for (std::int64_t i = 0; i < items.shape[0]; from += items(i).num_tokens, ++i) {
    served_sequence& s = *find(items(i).sequence);
    if (s.policy.mode == selection_mode::everything) continue;
    for (std::size_t k = 0; k < key_sources.size(); ++k)
      if (is_key_source(k))
        if (const status code = encode(s, k, items(i), rows, from); code != status::ok) return code;
    for (std::size_t q = 0; q < query_sources.size(); ++q)
      if (query_sources[q].layer == layer && query_sources[q].kind == kind)
        s.queries[q].push(items(i).position, items(i).num_tokens, rows, from);
  }
  return status::ok;
}

status selector::observe(batch items, std::int32_t layer, const_tensor<2> hidden, stream_ref) noexcept {
  return impl_->observe(items, layer, tap_kind::hidden, hidden);
}

status selector::observe_queries(batch items, std::int32_t layer, const_tensor<2> queries,
                                 stream_ref) noexcept {
  return impl_->observe(items, layer, tap_kind::queries, queries);
}

}  // namespace v0
}  // namespace flashmemory
