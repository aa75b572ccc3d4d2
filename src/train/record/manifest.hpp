// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/train/record/recordings.hpp>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// A shard as its manifest lists it.
struct shard_entry {
  std::int64_t number = 0;
  std::size_t bytes = 0;
  std::uint64_t checksum = 0;  ///< XXH3 of the whole file
};

/// A finished document as its manifest lists it.
struct manifest_document {
  std::int64_t number = 0;
  document_info info;
  std::vector<std::int64_t> parts;  ///< shard numbers; part p of the document lies in shard parts[p]
};

/// What one writer has recorded: manifest.<writer>.json. Shards that no document refers to hold parts of
/// documents that were not finished when it was written.
struct manifest {
  std::string writer;
  recording_geometry geometry;
  std::map<std::string, std::string> settings;  ///< recorder_options::settings
  std::string rows;                             ///< type of stored rows; empty = not stated
  std::int64_t next_document = 0;
  std::int64_t next_shard = 0;
  std::vector<shard_entry> shards;           ///< ascending numbers
  std::vector<manifest_document> documents;  ///< ascending numbers

  /// Null if it is not listed.
  const shard_entry* find_shard(std::int64_t number) const noexcept;
};

/// Letters, digits, '-' and '_', 1 to 64 of them: what may be part of a file name.
bool is_writer_name(std::string_view name) noexcept;

std::string manifest_path(const std::string& folder, const std::string& writer);
std::string shard_path(const std::string& folder, const std::string& writer, std::int64_t number);

/// The manifest's text, its own checksum included.
std::string to_text(const manifest& m);

/// Names a manifest's text, 16 hex digits. Shards carry that of the manifest in force when they were written, in their
/// metadata under this name.
std::string digest_of(const manifest& m);
inline constexpr const char* follows_field = "follows";

/// \throws format_error naming `file` and the field
manifest parse_manifest(std::string_view text, const std::string& file);

/// The number in the name of a shard of this writer; -1 if a file of that name is none.
std::int64_t shard_number(const std::string& writer, std::string_view name);

/// The text with the checksum that its content has; unchanged where it is no JSON of that form. For tests.
std::string with_right_checksum(const std::string& text);

/// \throws io_failure naming the file
std::string read_text(const std::string& path);

/// XXH3 of a file, read in pieces. \throws io_failure naming the file
std::uint64_t file_checksum(const std::string& path);

/// Names of the folder's manifests, sorted. \throws io_failure
std::vector<std::string> manifests_of(const std::string& folder);

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
