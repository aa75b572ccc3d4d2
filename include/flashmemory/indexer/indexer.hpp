// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_reader.hpp>
#include <flashmemory/view.hpp>
#include <utility>
#include <vector>

namespace flashmemory {
inline namespace v0 {

/// What of the model an indexer looks at.
enum class tap_kind : std::int32_t {
  hidden,   ///< the input of a layer's attention block, after its norm
  queries,  ///< a layer's attention queries of all heads, after position encoding
  keys,     ///< a layer's keys of all KV heads, after position encoding: what append() takes
};

/// What an indexer wants to see of the newest tokens of a sequence: one vector of each.
struct query_tap {
  std::int32_t layer = 0;
  tap_kind kind = tap_kind::hidden;
  std::int32_t width = 0;   ///< floats: the hidden size, or heads x key_dim
  std::int32_t tokens = 1;  ///< how many of the newest tokens, up to max_query_tap_tokens
};

/// Most tokens of a query_tap.
inline constexpr std::int32_t max_query_tap_tokens = 64;

/// One lane of index keys that an indexer's key encoder makes from a layer's hidden states or keys.
struct index_key_tap {
  std::int32_t layer = 0;           ///< whose vectors it reads
  std::int32_t width = 0;           ///< floats: the hidden size, or KV heads x key_dim
  std::int32_t tokens_per_key = 4;  ///< stride
  std::int32_t window = 4;          ///< tokens a key sees, ending with its own last one; >= tokens_per_key
  tap_kind kind = tap_kind::hidden;
};

/// What an indexer is, as data: what of the model it wants to see, which index keys it reads, what its scores mean.
struct indexer_taps {
  const char* name = "";           ///< for tables and reports, static storage
  std::vector<query_tap> queries;  ///< vectors that score() reads
  std::vector<index_key_tap>
      index_keys;            ///< lanes that it encodes itself, in order; empty for a model that has index
                             ///< keys of its own (the engine appends them) and for indexers without
  index_key_geometry reads;  ///< what score() reads, whoever appends it; 0 lanes = no index keys. The
                             ///< layout does not matter
  /// Names what index keys depend on: two indexers of one fingerprint make the same keys of the same rows, up to rounding,
  /// so that keys which one has made the other may score. 0 = it makes none.
  std::uint64_t index_key_fingerprint = 0;
  bool log_odds = false;  ///< scores are log-odds of "needed"
};

/// One sequence that is to be scored.
struct score_request {
  const chunk_reader* reader = nullptr;
  sequence_handle sequence;
  std::int64_t position = 0;  ///< of the newest processed token
  std::int64_t chunks = 0;    ///< score chunks [0, chunks)
  /// [taps().queries], each [tokens, width]: the newest tokens' vectors, the newest last. For a token that is not kept -
  /// from before the sequence began, or not observed - stands the oldest one that is
  const float* const* queries = nullptr;
  workspace scratch;  ///< workspace_bytes()
  thread_hook threads = default_threads();
};

/// Predicts which chunks the next interval of tokens will attend to: one score per chunk, higher is needed more. Scores are
/// log-odds where the taps say so, so that a threshold on a probability has a meaning.
///
/// An implementation is its taps and score(); one with a key encoder besides has encode_index_keys(). It is immutable after
/// construction, except where it says otherwise, and may be shared by selectors.
class FLASHMEMORY_API indexer {
 public:
  virtual ~indexer() = default;
  indexer(const indexer&) = delete;
  indexer& operator=(const indexer&) = delete;

  /// What it reads; the same for as long as it lives.
  const indexer_taps& taps() const noexcept { return taps_; }

  /// Scores the chunks of one sequence, in host memory.
  /// \param[out] scores [request.chunks]; may hold NaN where the inputs do, which selection ranks last
  /// \returns index_keys_missing if a lane has fewer keys than the chunks need; workspace_small
  virtual status score(const score_request& request, view<float, 1> scores) noexcept = 0;

  /// Bytes of workspace for score() over up to `max_chunks` chunks and encode_index_keys() of up to `max_keys` keys.
  virtual std::size_t workspace_bytes(const kv_geometry& geometry, std::int64_t max_chunks,
                                      std::int64_t max_keys) const noexcept;

  /// Encodes `keys.shape[0]` consecutive keys of one of the lanes in taps().index_keys.
  /// \param[in]  rows  [(keys - 1) * tokens_per_key + window, width], what the lane's tap reads; rows before a sequence's
  ///     start are zero
  /// \param[out] keys  [keys, reads.bytes()], contiguous rows: the values, then the scale
  /// \returns unsupported if it encodes none
  virtual status encode_index_keys(std::int32_t lane, view<const float, 2> rows, view<std::byte, 2> keys,
                                   workspace scratch, thread_hook threads) const noexcept;

 protected:
  /// With what it says it reads.
  explicit indexer(indexer_taps taps) : taps_(std::move(taps)) {}

  indexer_taps taps_;  ///< complete when the constructor has ended
};

/// Throws argument_error naming the first difference if an indexer with these taps cannot serve a store of `geometry`:
/// lanes, dims, type and tokens per key of its index keys, layers of its taps.
FLASHMEMORY_API void check_compatible(const indexer_taps& taps, const kv_geometry& geometry);

}  // namespace v0
}  // namespace flashmemory
