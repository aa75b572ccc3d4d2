// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/indexer.hpp>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {

std::size_t indexer::workspace_bytes(const kv_geometry&, std::int64_t, std::int64_t) const noexcept {
  return 0;
}

status indexer::encode_index_keys(std::int32_t, view<const float, 2>, view<std::byte, 2>, workspace,
                                  thread_hook) const noexcept {
  return status::unsupported;
}

void check_compatible(const indexer_taps& taps, const kv_geometry& geometry) {
  const auto differ = [&](const std::string& what) {
    throw argument_error(status::bad_shape,
                         formatted("indexer '{}' does not fit the store: {}", taps.name, what));
  };
  const index_key_geometry &reads = taps.reads, &kept = geometry.index_keys;
  if (kept.lanes < reads.lanes)
    differ(formatted("it reads {} lanes of index keys, the store keeps {}", reads.lanes, kept.lanes));
  if (reads.lanes > 0 && (kept.dim != reads.dim || kept.type != reads.type))
    differ(formatted("its index keys are {} x {}, the store's {} x {}", reads.dim, to_string(reads.type),
                     kept.dim, to_string(kept.type)));
  if (reads.lanes > 0 && kept.tokens_per_key != reads.tokens_per_key)
    differ(formatted("it was made for {} tokens a key, the store has {}", reads.tokens_per_key,
                     kept.tokens_per_key));
  if (static_cast<std::int32_t>(taps.index_keys.size()) > kept.lanes)
    differ(formatted("it encodes {} lanes of index keys, the store keeps {}", taps.index_keys.size(),
                     kept.lanes));
  const auto check_layer = [&](const char* kind, std::size_t at, std::int32_t layer) {
    if (layer < 0 || layer >= geometry.layers)
      differ(formatted("its {} tap {} reads layer {} of {}", kind, at, layer, geometry.layers));
  };
  const auto check_width = [&](const char* of, std::size_t at, tap_kind kind, std::int64_t width) {
    if (kind != tap_kind::keys) return;
    if (geometry.format != kv_format::separate || geometry.tokens_per_entry != 1)
      differ(formatted("its {} tap {} reads keys of tokens, which this store does not hold", of, at));
    if (width != std::int64_t{geometry.kv_heads} * geometry.key_dim)
      differ(formatted("its {} tap {} reads keys of {} values a token, the store's have {} x {}", of, at,
                       width, geometry.kv_heads, geometry.key_dim));
  };
  for (std::size_t i = 0; i < taps.index_keys.size(); ++i) {
    const index_key_tap& tap = taps.index_keys[i];
    if (tap.tokens_per_key != kept.tokens_per_key)
      differ(formatted("its index-key lane {} has {} tokens a key, the store {}", i, tap.tokens_per_key,
                       kept.tokens_per_key));
    check_layer("index-key", i, tap.layer);
    check_width("index-key", i, tap.kind, tap.width);
  }
  for (std::size_t i = 0; i < taps.queries.size(); ++i) {
    check_layer("query", i, taps.queries[i].layer);
    check_width("query", i, taps.queries[i].kind, taps.queries[i].width);
  }
}

}  // namespace v0
}  // namespace flashmemory
