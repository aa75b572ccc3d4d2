// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/error.hpp>

#include "src/core/format.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

store_bytes store_bytes_for(const store_options& options, const sequence_options& each,
                            std::int32_t sequences) {
  const kv_geometry& g = options.geometry;
  validate(g);
  if (sequences < 0 || sequences > options.max_sequences)
    throw argument_error(status::bad_argument,
                         formatted("store_bytes_for: {} sequences, store_options::max_sequences is {}",
                                   sequences, options.max_sequences));
  if (each.max_tokens < 1 || each.max_resident_chunks < 0 || each.recent_chunks < 0)
    throw argument_error(
        status::bad_argument,
        formatted("store_bytes_for: sequences of {} tokens, {} resident and {} recent chunks",
                  each.max_tokens, each.max_resident_chunks, each.recent_chunks));
  const chunk_layout layout(g);
  const std::int64_t chunks = g.chunks_for(each.max_tokens);
  const bool whole = each.max_resident_chunks == 0;
  const std::int64_t quota = whole ? chunks : std::min(each.max_resident_chunks, chunks);
  const std::int64_t transition =
      whole || sequences == 0 ? 0
      : options.transition_chunks == 0
          ? quota
          : std::max(options.transition_chunks, std::int64_t{each.recent_chunks} + 1);
  using detail::saturating_add;
  using detail::saturating_multiply;
  const auto n = static_cast<std::size_t>(sequences);
  const std::size_t slot = layout.chunk_bytes() + sizeof(detail::fast_slot);
  const std::size_t slots =
      saturating_add(saturating_multiply(n, std::size_t(quota)), std::size_t(transition));
  const std::size_t keys =
      g.index_keys.lanes == 0
          ? 0
          : saturating_multiply(std::size_t(g.index_keys.lanes),
                                saturating_multiply(std::size_t(chunks), layout.index_key_page_bytes()));
  const std::int64_t records = std::int64_t{sequences} * chunks;
  detail::fast_memory none(options.memory, options.memory, 0);
  const detail::record_pool pool(none, g.layers, records);
  std::size_t fast = sizeof(detail::sequence_place) * std::size_t(options.max_sequences) +
                     layout.layer_bytes();  // host_tier's staging
  fast = saturating_add(fast, saturating_multiply(slots, slot));
  fast = saturating_add(
      fast, saturating_multiply(n, saturating_add(keys, detail::sequence_block_bytes(g, quota, chunks))));
  fast = saturating_add(fast, pool.bytes_to_grow_to(records));
  return {fast, saturating_multiply(std::size_t(records), layout.chunk_bytes())};
}

}  // namespace v0
}  // namespace flashmemory
