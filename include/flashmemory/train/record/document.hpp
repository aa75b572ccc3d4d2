// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <flashmemory/indexer/indexer.hpp>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// Which part of a data set a document belongs to.
enum class dataset_split : std::int32_t { train, validation };

/// "train" or "validation"; "?" for a value outside the enumeration.
FLASHMEMORY_API const char* to_string(dataset_split split) noexcept;

/// One key sequence of a recording: either what a key encoder reads (a hidden state averaged over the key's
/// causal window) or the index keys of a model that has its own.
struct recorded_key_stream {
  std::int32_t layer = 0;           ///< whose hidden states, or whose native keys
  std::int32_t width = 0;           ///< of a key encoder's input; 0 for native keys
  std::int32_t tokens_per_key = 4;  ///< stride: key s ends with token (s + 1) * tokens_per_key - 1
  std::int32_t window = 4;          ///< tokens averaged, ending with the key's last one; >= tokens_per_key
  std::int32_t key_bytes = 0;       ///< of a native key with its scale, e.g. 132; 0 for encoder inputs

  /// Whether the model's own index keys are recorded.
  bool native() const noexcept { return key_bytes != 0; }
};

/// What all documents of a data set have in common. Recordings of different geometries are never mixed.
struct recording_geometry {
  std::int32_t layers = 0;              ///< whose attention is recorded
  std::int32_t heads = 0;               ///< query heads of each layer
  std::int32_t tokens_per_entry = 1;    ///< of attention's entries
  std::int32_t entries_per_chunk = 64;  ///< the engine's; labels may be made for another chunk size
  std::vector<query_tap> queries;       ///< vectors recorded per query position
  std::vector<recorded_key_stream> keys;
  std::string model_fingerprint;  ///< names the model whose vectors these are

  /// Tokens that one chunk holds.
  std::int64_t tokens_per_chunk() const noexcept {
    return std::int64_t{entries_per_chunk} * tokens_per_entry;
  }
};

/// Field by field.
FLASHMEMORY_API bool operator==(const recording_geometry& a, const recording_geometry& b) noexcept;
/// Field by field.
FLASHMEMORY_API bool operator!=(const recording_geometry& a, const recording_geometry& b) noexcept;

/// \throws argument_error naming the field that cannot work
FLASHMEMORY_API void validate(const recording_geometry& geometry);

/// A growing matrix of bf16 or f32 values, row-major; rows are read as floats.
class FLASHMEMORY_API row_matrix {
 public:
  row_matrix() = default;
  /// Without rows. \param type bf16 or f32; \throws argument_error for another type or a negative width
  row_matrix(dtype type, std::int64_t width);

  /// How values are stored.
  dtype type() const noexcept { return type_; }
  /// Rows so far.
  std::int64_t rows() const noexcept { return rows_; }
  /// Values of a row.
  std::int64_t width() const noexcept { return width_; }
  /// Whether there is no row.
  bool empty() const noexcept { return rows_ == 0; }

  /// Appends one row, rounding to nearest if it is stored as bf16.
  void append(const float* row);
  /// Appends `count` rows as they are stored: [count, width] of type().
  void append_stored(const void* values, std::int64_t count);
  /// Writes row `index` to out [width].
  void read(std::int64_t index, float* out) const noexcept;
  /// All rows, converted. [rows, width]
  std::vector<float> to_floats() const;
  /// Without rows again.
  void clear() noexcept;

  /// [rows, width] of type(), contiguous.
  const std::byte* data() const noexcept { return data_.data(); }
  /// Of data().
  std::size_t bytes() const noexcept { return data_.size(); }

 private:
  dtype type_ = dtype::bf16;
  std::int64_t rows_ = 0;
  std::int64_t width_ = 0;
  std::vector<std::byte> data_;
};

/// Keys of one stream of one document. Of the two members one is in use, as the stream says.
struct document_keys {
  row_matrix inputs;              ///< [keys, width], key encoder inputs
  std::vector<std::byte> native;  ///< [keys, key_bytes], rows of e4m3 bytes and an f32 scale
  std::int64_t keys = 0;
};

/// One entry that a head paid attention to.
struct attention_entry {
  std::int32_t layer = 0;
  std::int32_t head = 0;
  std::int64_t entry = 0;  ///< position among attention's entries, below those that exist
  float mass = 0;          ///< its softmax weight; the softmax runs over all history
};

/// The attention that recorded tokens really paid, a compressed sparse table: token i, at positions[i], paid
/// items [offsets[i], offsets[i + 1]). Which tokens are in it is independent of the query positions: a label
/// window (t, t + tau] wants the tokens after the query at t.
struct attention_table {
  std::vector<std::int64_t> positions;   ///< ascending, without repetition
  std::vector<std::int64_t> offsets{0};  ///< [positions + 1]
  std::vector<std::uint16_t> layer;      ///< [items]; of a token ascending by layer, then head,
  std::vector<std::uint16_t> head;       ///< [items]  then falling by mass
  std::vector<std::uint32_t> entry;      ///< [items]
  std::vector<float> mass;               ///< [items], in (0, 1]

  /// Tokens whose attention was recorded.
  std::int64_t tokens() const noexcept { return static_cast<std::int64_t>(positions.size()); }
  /// Entries of all of them together.
  std::int64_t items() const noexcept { return static_cast<std::int64_t>(entry.size()); }
};

/// Known need: tokens in [token_begin, token_end) need the entries in [entry_begin, entry_end).
struct evidence_range {
  std::int64_t token_begin = 0;
  std::int64_t token_end = 0;
  std::int64_t entry_begin = 0;
  std::int64_t entry_end = 0;
};

/// One recorded sequence: queries and keys that an indexer would have seen, and the attention that was paid.
struct document {
  std::string tag;                             ///< e.g. the kind of task; free text
  dataset_split split = dataset_split::train;  ///
  std::int64_t tokens = 0;                     ///< length of the sequence, prompt and answer
  std::vector<std::int64_t> positions;         ///< query positions, ascending, without repetition
  std::vector<row_matrix> queries;             ///< per query tap [positions, width]
  std::vector<document_keys> keys;             ///< per index-key lane
  attention_table attention;                   ///< [tokens recorded]
  std::vector<evidence_range> evidence;        ///< ordered by token_begin; empty if needs are not known

  /// Bytes that its vectors take.
  std::size_t bytes() const noexcept;
};

/// A document of `geometry` without content: one empty matrix per tap and stream, stored as `type`.
FLASHMEMORY_API document empty_document(const recording_geometry& geometry, dtype type);

/// \throws format_error naming `name` and the field that does not fit `geometry`: extents, order of
///     positions, entries that did not exist yet, masses that are no probabilities, NaN or Inf in rows
FLASHMEMORY_API void check_document(const document& doc, const recording_geometry& geometry,
                                    const std::string& name);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
