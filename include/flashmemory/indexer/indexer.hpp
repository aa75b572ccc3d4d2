// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// What of the model an indexer looks at.
enum class tap_kind : std::int32_t {
  hidden,   ///< the input of a layer's attention block, after its norm
  queries,  ///< a layer's attention queries of all heads, after position encoding
};

/// One vector per sequence that an indexer wants to see of the newest token.
struct query_tap {
  std::int32_t layer = 0;
  tap_kind kind = tap_kind::hidden;
  std::int32_t width = 0;  ///< floats: the hidden size, or query heads x key_dim
};

/// One index-key sequence that an indexer's key encoder makes from hidden states.
struct key_tap {
  std::int32_t layer = 0;           ///< whose hidden states it reads
  std::int32_t width = 0;           ///< hidden size
  std::int32_t tokens_per_key = 4;  ///< stride
  std::int32_t window = 4;          ///< tokens a key sees, ending with its own last one; >= tokens_per_key
};

/// One sequence that is to be scored.
struct score_request {
  const chunk_store* store = nullptr;
  sequence_handle sequence;
  std::int64_t position = 0;              ///< of the newest processed token
  std::int64_t chunks = 0;                ///< score chunks [0, chunks)
  const float* const* queries = nullptr;  ///< [query_taps], each [width]: the newest token's vectors
};

/// Predicts which chunks the next interval of tokens will attend to: one score per chunk, higher is needed
/// more. Scores are log-odds where log_odds() says so, so that a threshold on a probability has a meaning.
///
/// Implementations are immutable after construction, except where they say otherwise, and may be shared by
/// selectors.
class FLASHMEMORY_API indexer {
 public:
  virtual ~indexer() = default;
  indexer(const indexer&) = delete;
  indexer& operator=(const indexer&) = delete;

  /// A short name for tables and reports, static storage.
  virtual const char* name() const noexcept = 0;

  /// Vectors that score() reads. Rank-1 view owned by the indexer.
  virtual view<const query_tap, 1> query_taps() const noexcept = 0;

  /// Key streams it encodes itself, in the order of the store's key streams. Empty for a model that has index
  /// keys of its own (the engine appends them) and for indexers without keys.
  virtual view<const key_tap, 1> key_taps() const noexcept = 0;

  /// Key streams that score() reads, whoever appends them.
  virtual std::int32_t key_streams() const noexcept = 0;

  /// Whether scores are log-odds of "needed".
  virtual bool log_odds() const noexcept = 0;

  /// Bytes of workspace for score() over up to `max_chunks` chunks and encode_keys() of up to `max_keys`
  /// keys.
  virtual std::size_t workspace_bytes(const kv_geometry& geometry, std::int64_t max_chunks,
                                      std::int64_t max_keys) const noexcept = 0;

  /// Encodes `keys.shape[0]` consecutive keys of one stream.
  /// \param[in]  rows  [(keys - 1) * tokens_per_key + window, width], hidden states; rows before a sequence's
  /// start are
  ///                   zero
  /// \param[out] keys  [keys, key_bytes], contiguous rows of e4m3 bytes and an f32 scale
  virtual status encode_keys(std::int32_t stream_index, view<const float, 2> rows, view<std::byte, 2> keys,
                             workspace scratch, thread_hook threads) const noexcept = 0;

  /// Scores the chunks of one sequence.
  /// \param[out] scores [request.chunks]; may hold NaN where the inputs do, which selection ranks last
  /// \returns keys_missing if a stream has fewer keys than the chunks need; workspace_small
  virtual status score(const score_request& request, view<float, 1> scores, workspace scratch,
                       thread_hook threads, stream_ref stream) noexcept = 0;

 protected:
  indexer() = default;
};

}  // namespace v0
}  // namespace flashmemory
