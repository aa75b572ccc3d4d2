// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/train/record/document.hpp>
#include <memory>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// What a manifest tells about a document without reading its shards.
struct document_info {
  std::string name;  ///< writer and number, e.g. "node3/17"; unique in a data set
  std::string tag;
  dataset_split split = dataset_split::train;
  std::int64_t tokens = 0;
  std::int64_t queries = 0;           ///< query positions
  std::int64_t attention_tokens = 0;  ///< tokens whose attention was recorded
  std::int64_t evidence = 0;          ///< ranges
  std::size_t bytes = 0;              ///< that load() takes in memory, about
};

/// Set-up of recordings.
struct recordings_options {
  /// Largest document that load() may make, in bytes.
  std::size_t max_document_bytes = std::size_t{4} << 30;
};

/// A data set: everything that recorders wrote into one folder, opened read-only. Only manifests are read when
/// it is opened; of shards a document's parts are read as it is loaded, and the checksum of each is compared the first
/// time. Memory: the manifests' lines and the documents the caller holds.
///
/// load() may be called from several threads.
class FLASHMEMORY_API recordings {
 public:
  /// Opens all writers' manifests of `folder`.
  /// \throws io_failure if the folder or a manifest cannot be read; format_error naming the file and field for
  ///     a manifest that is not one, of another version, or of another geometry or model than the others, and
  ///     naming the shard if one is missing or has another size; argument_error for an empty data set
  explicit recordings(const std::string& folder, const recordings_options& options = {});
  ~recordings();
  recordings(recordings&&) noexcept;
  recordings& operator=(recordings&&) noexcept;

  /// Common to all documents.
  const recording_geometry& geometry() const noexcept;
  /// Documents of all writers, ordered by writer, then number.
  const std::vector<document_info>& documents() const noexcept;

  /// Reads one document.
  /// \throws argument_error for an index out of range; admission_error above max_document_bytes; format_error
  ///     naming the shard whose checksum or content is wrong; io_failure
  document load(std::int64_t index) const;

  /// Compares the checksums of all shards, whether compared before or not. \throws as load()
  void verify() const;

  /// Names the content: 32 hex digits that change with any shard and any document. For artifacts: what they
  /// were trained on.
  std::string fingerprint() const;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
