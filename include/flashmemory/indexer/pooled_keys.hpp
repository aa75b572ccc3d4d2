// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/indexer.hpp>
#include <memory>
#include <vector>

namespace flashmemory {
inline namespace v0 {

/// One KV head that a pooled_keys_indexer looks at: a lane of index keys.
struct pooled_keys_lane {
  std::int32_t layer = 0;
  std::int32_t kv_head = 0;
  std::vector<std::int32_t> query_heads;  ///< of the KV head's group, those that are asked; empty = all of it
  std::vector<float> key_projection;      ///< [dim, key_dim]; empty = none
  std::vector<float> query_projection;    ///< [dim, key_dim]; empty = the key's
};

/// Everything that defines a pooled_keys_indexer.
struct pooled_keys_config {
  std::int32_t query_heads = 0;  ///< of the model; a multiple of kv_heads
  std::int32_t kv_heads = 0;
  std::int32_t key_dim = 0;
  std::int32_t dim = 0;  ///< values of an index key; 0 = key_dim, and another one takes projections
  std::int32_t tokens_per_key = 4;  ///< whose mean an index key is
  index_key_type type = index_key_type::mxfp4;
  std::int32_t query_tokens = 8;  ///< newest tokens that are asked, 1 to max_query_tap_tokens
  float softmax_scale = 0;        ///< 0 = 1/sqrt(key_dim)

  /// First and newest complete chunks whose keys take no part in the mass that the others share, such as those that the
  /// policy keeps anyway: attention sinks get most of many heads' mass.
  std::int32_t uncounted_sink_chunks = 0;
  std::int32_t uncounted_recent_chunks = 0;

  std::vector<pooled_keys_lane> lanes;
};

/// The model's own queries against means of its own keys: attention itself, at a coarser grain, and untrained. An index key
/// is the mean of `tokens_per_key` keys of one KV head after position encoding, projected where the lane says so. For each of
/// the newest tokens, each lane and each of its query heads, a softmax over all index keys gives every chunk a mass; a chunk's
/// need is the largest over lanes and heads, and of several tokens the root of their mean square. Scores are its log-odds,
/// finite unless a query or an index key of another reader is not.
///
/// Reads queries (selector::observe_queries()) and makes its index keys from K (selector::observe_keys()) of the layers of its
/// lanes. In a store: index_key_geometry{lanes, dim, type, tokens_per_key}, in either layout.
///
/// Immutable; may be shared by any number of selectors and threads.
class FLASHMEMORY_API pooled_keys_indexer final : public indexer {
 public:
  /// \throws argument_error naming the field, or the lane and what of it
  explicit pooled_keys_indexer(pooled_keys_config config);
  ~pooled_keys_indexer() override;

  /// What it was built with, `dim` and `softmax_scale` filled in.
  const pooled_keys_config& config() const noexcept;

  status score(const score_request& request, view<float, 1> scores) noexcept override;
  std::size_t workspace_bytes(const kv_geometry& geometry, std::int64_t max_chunks,
                              std::int64_t max_keys) const noexcept override;
  status encode_index_keys(std::int32_t lane, view<const float, 2> rows, view<std::byte, 2> keys,
                           workspace scratch, thread_hook threads) const noexcept override;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

/// A configuration that looks at all KV heads of `layers`, of a model with the geometry's heads and dims; its other fields
/// are the defaults. Layers that attend to the whole context are worth looking at.
FLASHMEMORY_API pooled_keys_config pooled_keys_of(const kv_geometry& geometry, std::int32_t query_heads,
                                                  const std::vector<std::int32_t>& layers);

/// The taps of an indexer of this configuration.
/// \throws argument_error as pooled_keys_indexer's constructor
FLASHMEMORY_API indexer_taps taps_of(const pooled_keys_config& config);

}  // namespace v0
}  // namespace flashmemory
