// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/chunk_store.hpp>
#include <string>
#include <vector>

#include "src/session/sections.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Layout of a session file, version 2, all integers little-endian:
///
///   fixed part     magic, version, lengths, geometry, options, counts, file id, encoder (see encode_header())
///   key counts     i64 per index-key lane
///   names          the model tag, then the name of the encoder of the index keys
///   u64            XXH3 of everything before it
///   resident set   i32 per resident complete chunk, ascending; u64 checksum
///   chunks         in chunk_layout, each followed by its u64 checksum
///   index keys     lane after lane, rows of values and scale; u64 checksum after each lane
///   selector state as selector::save_state() made it, or nothing; u64 checksum
///   u64            digest: XXH3 of everything before it
///
/// Nothing follows. The file's size is a function of the header. A section's checksum depends on the file id and on the
/// section's number, see section_checksum(). All of it finds damage and mix-ups; it does not prove who wrote the file.
struct session_header {
  kv_geometry geometry;
  sequence_options options;
  std::int64_t tokens = 0;
  std::int64_t resident = 0;       ///< ids in the resident set
  std::int64_t state_bytes = 0;    ///< of the selector's state; 0 = none
  std::vector<std::int64_t> keys;  ///< per stream
  file_id id{};                    ///< of this file
  std::string model_tag;           ///< as the engine named it
  std::string encoder_name;        ///< of the indexer whose encoder made the index keys
  std::uint64_t encoder = 0;       ///< indexer_taps::index_key_fingerprint; 0 = not known

  std::int64_t chunks() const noexcept { return geometry.chunks_for(tokens); }
  std::int64_t complete_chunks() const noexcept {
    return geometry.entries_for(tokens) / geometry.entries_per_chunk;
  }
};

/// Index keys go to and from a file by way of host memory. \throws error with unsupported, naming `doing`, if the store's
/// lie elsewhere
void require_keys_in_host_memory(const chunk_store& store, const char* doing);

/// Most bytes of a model tag and of an encoder's name.
inline constexpr std::size_t max_name_bytes = 256;

/// Bytes of the file that a header describes. \throws format_error if that is more than can be counted
std::uint64_t session_bytes(const session_header& header, const std::string& name);

/// The header with its checksum.
std::vector<std::byte> encode_header(const session_header& header);

/// Reads and checks a header: its checksum, that it describes a file of exactly this size, of `geometry` and with
/// `model_tag`, with numbers that agree with each other. Allocates nothing in proportion to a number in it.
/// \throws format_error naming the field and both sides
session_header read_header(section_reader& in, const kv_geometry& geometry, const std::string& model_tag);

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
