// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/parallel.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <flashmemory/view.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {

class selector;

/// What self_test() looks at. Each finds faults of its own kind: docs/self_test.md has the table.
enum class self_check : std::int32_t {
  none,
  call,        ///< a call that has to succeed did not: `why`
  index_keys,  ///< index keys that are not those of the tokens they stand for, or are not all there
  always,      ///< a chunk that is always resident - sink, recent, open - is not
  selected,    ///< the chunk that was wanted most is not resident after select_chunks()
  set_size,    ///< another number of chunks than the budget has
  needle,      ///< attention does not find what is planted in a resident chunk
  attention,   ///< attention, or its log-sum-exp, is not that of double arithmetic
};

/// The enumerator's name, e.g. "index_keys". Never null.
FLASHMEMORY_API const char* to_string(self_check check) noexcept;

/// What an engine does in a step, as self_test() asks it to. What it does not override the library does: an engine overrides what it
/// does otherwise - kernels of its own, other scales, copies - and so has it proved. Rows are f32 in host memory.
class FLASHMEMORY_API tested_step {
 public:
  tested_step() = default;
  tested_step(const tested_step&) = delete;
  tested_step& operator=(const tested_step&) = delete;
  virtual ~tested_step();

  /// Shows hidden states [tokens, width] of a layer.
  virtual status observe(selector& select, batch items, std::int32_t layer,
                         view<const float, 2> hidden) noexcept;
  /// Adds K [entries, kv_heads, key_dim] and V [entries, kv_heads, value_dim] of a layer.
  virtual status append(chunk_store& store, batch items, std::int32_t layer, view<const float, 3> k,
                        view<const float, 3> v) noexcept;
  /// After the last layer.
  virtual status select(selector& select, batch items) noexcept;
  /// Attention of q [tokens, query heads, key_dim] with a sink logit a head.
  /// \param everything  over all chunks, for pieces of prompts; else over those that are resident
  /// \param[out] out [tokens, query heads, value_dim]
  /// \param[out] lse [tokens, query heads]
  virtual status attend(chunk_store& store, batch items, std::int32_t layer, view<const float, 3> q,
                        view<const float, 1> sinks, bool everything, workspace scratch, view<float, 3> out,
                        view<float, 2> lse) noexcept;
};

/// Set-up of a self test.
struct self_test_options {
  std::int32_t query_heads = 0;  ///< of the model; a multiple of kv_heads
  std::int32_t sink_chunks = 1;  ///< as the engine's policies have them
  std::int32_t recent_chunks = 2;
  std::int64_t lengths = 1024;  ///< consecutive ones, decoded token by token
  bool prompts = true;          ///< and a prompt in pieces for each residue of its length modulo a chunk
  /// How far attention may be from double arithmetic, relative to the largest value of V.
  float tolerance = 1e-3f;
  std::uint64_t seed = 1;
};

/// What a self test found.
struct self_test_report {
  self_check failed = self_check::none;  ///< the first check that failed
  std::int64_t length = -1;              ///< tokens of the sequence then
  std::int64_t chunk = -1, layer = -1;   ///< where it has to do with one
  double expected = 0, got = 0;
  fault why;                 ///< of failed calls
  std::int64_t checks = 0;   ///< that were made
  std::int64_t lengths = 0;  ///< of sequences at which they were made
  double seconds = 0;

  /// Whether no check failed.
  bool passed() const noexcept { return failed == self_check::none; }
};

/// In a sentence, for logs.
FLASHMEMORY_API std::string describe(const self_test_report& report);

/// Plays an engine over `store` and says whether it finds what it has planted: in every chunk, at every residue of the length modulo
/// chunk, index key and entry, in last pieces of prompts of every length up to a chunk, and over so many consecutive lengths. Index keys
/// are made by a probe from hidden states whose every bit shows in them; after each step the chunk that the probe wants, besides those
/// that are always resident, must be what attention finds, and what attention computes must be what double arithmetic does.
///
/// For an engine's start-up, on the store that will serve: it opens one sequence at a time, and leaves nothing behind; open sequences are
/// not touched. All layers of the geometry take part. Set-up call.
/// \param step  what the engine does otherwise than the library; null = nothing
/// \throws admission_error if the store has no room for one more sequence of self_test_tokens() tokens; argument_error for options that
///     cannot work; error with unsupported for kv_format::deepseek_v4. A store on a device fails `call`: tensors are the host's
FLASHMEMORY_API self_test_report self_test(chunk_store& store, const self_test_options& options,
                                           tested_step* step = nullptr);

/// The longest sequence that self_test() opens, for budgets; its quota is small: sink, recent and selected chunks.
FLASHMEMORY_API std::int64_t self_test_tokens(const kv_geometry& geometry,
                                              const self_test_options& options) noexcept;

}  // namespace v0
}  // namespace flashmemory
