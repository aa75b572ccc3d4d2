// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <flashmemory/train/record/document.hpp>
#include <flashmemory/view.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// Set-up of a recorder.
struct recorder_options {
  std::string writer =
      "0";  ///< part of file names: letters, digits, '-' and '_'; one recorder at a time each
  dtype rows = dtype::bf16;  ///< how queries and key encoder inputs are stored: bf16 or f32
  std::size_t memory_budget = std::size_t{256} << 20;  ///< bytes of vectors that may wait to be written
  std::size_t shard_bytes = std::size_t{64}
                            << 20;  ///< a shard is written when about this much waits; at most
                                    ///< memory_budget

  /// What else the recordings depend on, e.g. lengths, kinds of task and the seed: name -> value, UTF-8. Kept in the
  /// manifest; a recorder that goes on in a folder must state the same.
  std::map<std::string, std::string> settings;

  /// Start anew: this writer's manifest and shards go, after everything else about the folder and the options has been
  /// checked. Files of other names, other writers' recordings among them, stay.
  bool fresh = false;
};

/// Names a document that is being recorded.
using recording_id = std::int64_t;

/// Running totals of a recorder.
struct recorder_counters {
  std::int64_t documents = 0;     ///< finished, earlier runs of this writer included
  std::int64_t shards = 0;        ///< that hold them
  std::int64_t dropped = 0;       ///< documents that were begun but not finished, this run's
  std::size_t bytes_written = 0;  ///< this run's
  std::size_t peak_bytes = 0;     ///< most bytes that waited at a time, this run's
};

/// Writes what an engine shows it while it decodes into a folder of shards (safetensors) with one manifest per
/// writer. Several sequences may be recorded at a time; several recorders, also of different processes, may
/// write into one folder if each has a writer name of its own.
///
/// At most memory_budget bytes of vectors wait in memory, however long documents are: what waits is written as
/// a part of its document. A document counts once it was finished and its shard is listed in the manifest,
/// which is replaced as a whole after the shard it lists has been synced. After a crash a recorder of the same
/// name goes on where the manifest ends; temporary files and the shards that were written after it, but not listed, are
/// removed. Shards that any other manifest may have listed never are: where the manifest is lost or an older one, the
/// folder is refused.
///
/// It belongs to the process that made it: what a forked child would write is refused, and its destructor there writes
/// nothing.
///
/// No member may be called from several threads at a time. A call that throws has taken nothing, and may be
/// repeated, e.g. after room was made on a disk that was full.
class FLASHMEMORY_API recorder {
 public:
  /// Starts or goes on. The folder is made if its parent exists.
  /// \throws argument_error for options or a geometry that cannot work; format_error if the manifest of this
  ///     writer is damaged, of another geometry or of other options, which it names, or if there are shards that it
  ///     should list and does not; io_failure, also if another recorder of this name is at work
  recorder(const std::string& folder, const recording_geometry& geometry,
           const recorder_options& options = {});
  /// Drops documents that are not finished. What finished documents have waiting is written; call flush() to
  /// learn whether that succeeds.
  ~recorder();
  recorder(const recorder&) = delete;
  recorder& operator=(const recorder&) = delete;

  /// Begins a document. \param tag UTF-8, e.g. the kind of task
  recording_id begin(const std::string& tag, dataset_split split);

  /// Adds the vectors of one query position: one row per query tap.
  /// \param position  above all earlier query positions of the document
  /// \param[in] rows  [query taps], each [its width]
  /// \throws argument_error, io_failure (a shard could not be written), admission_error (one row is larger than
  ///     the budget); all members alike
  void add_query(recording_id id, std::int64_t position, const float* const* rows);

  /// Shows hidden states of `layer` from which key encoder inputs are pooled, for all streams of that layer:
  /// consecutive tokens from the sequence's start, in parts of any size, exactly once.
  /// \param[in] hidden  [tokens, width], f32, bf16 or f16
  void add_hidden(recording_id id, std::int32_t layer, std::int64_t position, const_tensor<2> hidden);

  /// Adds the next keys of one stream: encoder inputs that the engine pooled itself. Not for a stream that
  /// add_hidden() feeds.
  /// \param[in] inputs  [keys, width], f32, bf16 or f16
  void add_key_inputs(recording_id id, std::int32_t stream, const_tensor<2> inputs);

  /// Adds the next native index keys of one stream. \param[in] keys [keys, key_bytes], rows
  void add_native_keys(recording_id id, std::int32_t stream, view<const std::byte, 2> keys);

  /// Adds the attention that the token at `position` paid, e.g. from attention_mass().
  /// \param position  above all earlier attention positions of the document
  /// \param items     any order; of all layers and heads
  void add_attention(recording_id id, std::int64_t position, const std::vector<attention_entry>& items);

  /// States what a range of tokens is known to need. \throws argument_error for empty or negative ranges
  void add_evidence(recording_id id, const evidence_range& need);

  /// Ends a document of `tokens` tokens, after which it belongs to the data set as soon as it is written.
  /// \throws argument_error if a position, entry or key lies beyond `tokens`, or an index-key lane is shorter than
  ///     tokens / tokens_per_key
  void finish(recording_id id, std::int64_t tokens);

  /// Forgets a document.
  void drop(recording_id id);

  /// Adds a whole document at once.
  void add(const document& doc);

  /// Writes everything that waits and lists finished documents. \throws io_failure naming the shard
  void flush();

  /// What it was made for.
  const recording_geometry& geometry() const noexcept;
  /// Totals so far.
  recorder_counters counters() const noexcept;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
