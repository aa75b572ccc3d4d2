// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/indexer.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {

/// Indexers to compare with. They rank chunks without training, at the same budget and through the same
/// policy.

/// Newest chunks first. score = chunk id.
class FLASHMEMORY_API recency_indexer final : public indexer {
 public:
  recency_indexer();
  status score(const score_request& request, view<float, 1> scores) noexcept override;
};

/// Uniformly random, drawn anew at each refresh; a pure function of seed, sequence index, position and chunk.
class FLASHMEMORY_API random_indexer final : public indexer {
 public:
  /// Equal seeds give equal selections.
  explicit random_indexer(std::uint64_t seed);
  status score(const score_request& request, view<float, 1> scores) noexcept override;

 private:
  std::uint64_t seed_;
};

/// Quest-style upper bounds (arXiv 2406.10774): per layer and KV head, sum over dimensions of max(q * min K,
/// q * max K) bounds every logit of a chunk. Quest picks pages per head; here one set serves all layers, so
/// bounds become the softmax over chunks that they would imply, and a chunk scores the largest such mass any
/// head gives it.
///
/// Keeps per-chunk summaries of K, taken from the store when a chunk is first scored: 2 x layers x kv_heads x
/// key_dim floats a chunk, reserved by the constructor and touched as used. The two chunks that were newest
/// at the last scoring are always taken again, and everything from where a sequence was seen to be shorter; a
/// rollback further than that between two scorings, made up for by new tokens, goes unnoticed. A chunk that
/// cannot be read scores NaN, which ranks last; one that the medium refused is tried again the next time. Not for
/// several threads at a time.
class FLASHMEMORY_API quest_indexer final : public indexer {
 public:
  /// \param query_heads  of the model; a multiple of geometry.kv_heads
  /// \param max_sequences, max_chunks  sequences at a time and chunks of each that can be scored
  /// \param softmax_scale 0 = 1/sqrt(key_dim)
  /// \throws argument_error naming the argument; admission_error if the summaries find no memory
  quest_indexer(const kv_geometry& geometry, std::int32_t query_heads, std::int32_t max_sequences,
                std::int64_t max_chunks, float softmax_scale = 0);
  ~quest_indexer() override;

  status score(const score_request& request, view<float, 1> scores) noexcept override;
  std::size_t workspace_bytes(const kv_geometry& geometry, std::int64_t max_chunks,
                              std::int64_t max_keys) const noexcept override;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

/// Ranks by attention that was recorded before, e.g. in a run with everything resident: a chunk scores the
/// largest mass it gets at any recorded position in (position, position + horizon].
class FLASHMEMORY_API oracle_indexer final : public indexer {
 public:
  /// Looks `horizon` tokens ahead, usually the policy's interval.
  explicit oracle_indexer(std::int32_t horizon);
  ~oracle_indexer() override;

  /// Adds what the query at `position` of the sequence with that handle index paid: mass [chunks], e.g. the
  /// maximum over layers and heads from chunk_attention_mass(). Replaces what was recorded for that position.
  /// Set-up call: allocates.
  void record(std::uint32_t sequence_index, std::int64_t position, view<const float, 1> mass);

  /// Forgets what was recorded for a sequence.
  void forget(std::uint32_t sequence_index);

  status score(const score_request& request, view<float, 1> scores) noexcept override;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace v0
}  // namespace flashmemory
