// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/cuda/attend.hpp>
#include <flashmemory/cuda/chunk_tables.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Set-up of a decode step. The device, its memory and its multiprocessors are the store's context's.
struct decode_step_options {
  std::int32_t rows = 64;   ///< sequences in a step, at most
  std::int32_t tokens = 1;  ///< of every row in every step, [1, 8]
  std::int64_t max_chunks =
      0;  ///< resident chunks of a row, at most; 0 = the largest quota of the store's sequences now
  std::int32_t query_heads = 0;  ///< for attend(); 0 = the engine attends with kernels of its own, as it must
                                 ///< with kv_format::deepseek_v4
  std::int32_t staging_steps = 4;  ///< see chunk_tables_options
};

/// One decode step of a batch over a store in device memory, split so that all that touches the device between
/// prepare() and finish() is kernel launches with fixed arguments: capture them in a CUDA graph once and replay it, or
/// call them eagerly; the bytes are the same.
///
///     step.prepare(items, stream);                    // books of the whole forward pass, device tables
///     per layer:                                      // capture from here
///       step.observe(layer, hidden, stream);          //   what the indexer's taps read, and no other layers
///       step.observe_queries(layer, q, stream);       //   (observe_keys likewise)
///       step.append(layer, k, v, stream);
///       step.attend(layer, q, out, options, stream);
///     step.finish(stream);                            // to here; seals full chunks, commits
///     select_chunks(selector, items, stream);
///
/// Row r of a step is item r; its tensors' rows have fixed places, so that the shapes never change: `tokens` rows of
/// hidden states, queries and outputs, entries_per_row() rows of K and V, index_keys_per_row() rows of index keys. Rows beyond
/// the items and items with a default sequence_handle are empty: they attend to nothing (zero), and write nowhere.
///
/// While a step is open the store refuses other passes of its sequences. Calls are made from one thread at a time, and
/// steps of one object follow each other on one stream.
class FLASHMEMORY_API decode_step {
 public:
  /// \param store   made by cuda::make_store()
  /// \param select  whose taps observe() feeds, made by cuda::make_selector() over `store`; may be null
  /// \throws argument_error naming the field; admission_error if a memory resource has no room; error with cuda_error
  decode_step(tiered_chunk_store& store, selector* select, const decode_step_options& options);
  ~decode_step();
  decode_step(const decode_step&) = delete;
  decode_step& operator=(const decode_step&) = delete;

  /// What it was built with.
  const decode_step_options& options() const noexcept;
  /// Rows of K and V that a row of the step has: entries that `tokens` tokens may complete.
  std::int32_t entries_per_row() const noexcept;
  /// Rows of index keys that a row of the step has, per lane.
  std::int32_t index_keys_per_row() const noexcept;

  /// What each row attends to; valid for all layers from prepare() to the next one.
  const chunk_tables& tables() const noexcept;
  /// Position of each row's first token, [rows], device; -1 for an empty row.
  const std::int64_t* positions() const noexcept;
  /// Bytes of device memory: tables, staging, scratch and counters of attend().
  std::size_t device_bytes() const noexcept;

  /// Does the store's books for a forward pass through all layers - checks, new chunks, quota - and sends what changed
  /// in the tables. Sets up nothing that a graph would have to be captured anew for.
  /// \param items  at most `rows`, each with num_tokens = tokens, or a default handle
  /// \returns what tiered_chunk_store::begin_pass() and chunk_tables::update() return; out_of_order if a step is open.
  ///     On error nothing has changed
  status prepare(batch items, stream_ref stream) noexcept;

  /// Writes this step's K and V of one layer to their chunks. In a store of kv_format::deepseek_v4 they are the entry and
  /// the lightning key of the layer's own indexer, both unquantised, of one type, rows at multiples of 16 bytes.
  /// \param[in] k  [rows * entries_per_row(), kv_heads, key_dim], f32 or the geometry's dtype, unit last stride, device;
  ///     row r's entries start at r * entries_per_row(), those that are not completed by this step are not read
  /// \param[in] v  [rows * entries_per_row(), kv_heads, value_dim], likewise
  /// \returns out_of_range, bad_shape, bad_dtype, bad_argument (alignment), null_data, cuda_error
  status append(std::int32_t layer, const_tensor<3> k, const_tensor<3> v, stream_ref stream) noexcept;

  /// Writes this step's index keys of one lane, of an engine with keys of its own. A step that brings keys brings those of
  /// all lanes, in every step; then finish() commits them with the pass. A key that is not finite is stored as all zero.
  /// \param[in] keys  [rows * index_keys_per_row(), index_keys.bytes()], contiguous rows as
  ///     chunk_store::append_index_keys() takes them, device
  /// \returns unsupported if the selector's key encoder makes them, or the store has no lanes
  status append_index_keys(std::int32_t lane, view<const std::byte, 2> keys, stream_ref stream) noexcept;

  /// Shows the hidden states of one layer to the selector; layers that no tap reads are ignored. A step that does not
  /// do this for all target layers leaves hidden_missing to the next refresh.
  /// \param[in] hidden  [rows * tokens, width], f32, bf16 or f16, unit last stride, device
  status observe(std::int32_t layer, const_tensor<2> hidden, stream_ref stream) noexcept;

  /// The same for taps of kind queries.
  /// \param[in] queries  [rows * tokens, heads * key_dim]
  status observe_queries(std::int32_t layer, const_tensor<2> queries, stream_ref stream) noexcept;

  /// The same for taps of kind keys.
  /// \param[in] k  [rows * tokens, kv_heads, key_dim], f32, bf16 or f16, unit last stride: the tensor that goes to append()
  status observe_keys(std::int32_t layer, const_tensor<3> k, stream_ref stream) noexcept;

  /// sparse_attend() over the step's rows with the scratch and the counters of this object, unless `options` brings
  /// others.
  /// \param[in]  q    [rows * tokens, query_heads, key_dim]
  /// \param[out] out  [rows * tokens, query_heads, value_dim]
  status attend(std::int32_t layer, const_tensor<3> q, tensor<3> out, const attend_options& options,
                stream_ref stream) noexcept;

  /// Ends the pass: chunks that are complete now are written through to the backing store, the sequences are `tokens`
  /// tokens longer. Call it after the graph's launch or the eager calls.
  /// \returns out_of_order without an open step; index_keys_missing if some lanes' keys are part of the steps and others' are
  ///     not; what commit_pass() returns, after which it can be called again
  status finish(stream_ref stream) noexcept;

  /// Gives the open step up, so that its sequences are what they were before prepare(). Harmless without one. If some
  /// sequence cannot be rolled back (last_fault() says why) the step stays open for it, and the call may be repeated.
  void abandon() noexcept;

  /// Details of the last call that did not return ok.
  fault last_fault() const noexcept;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
