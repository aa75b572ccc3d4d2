// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/store/chunk_store.hpp>
#include <string>
#include <vector>

#include "src/session/byte_source.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Layout of a session file, all integers little-endian:
///
///   fixed part     magic, version, lengths, geometry, options, counts (see encode_header())
///   key counts     i64 per index-key lane
///   u64            XXH3 of everything before it
///   resident set   i32 per resident complete chunk, ascending; u64 XXH3
///   selector state as selector::save_state() made it, or nothing; u64 XXH3
///   index keys     stream after stream, rows of key_bytes; u64 XXH3 after each stream
///   chunks         in chunk_layout, each followed by its u64 XXH3
///
/// Nothing follows. The file's size is a function of the header.
struct session_header {
  kv_geometry geometry;
  sequence_options options;
  std::int64_t tokens = 0;
  std::int64_t resident = 0;       ///< ids in the resident set
  std::int64_t state_bytes = 0;    ///< of the selector's state; 0 = none
  std::vector<std::int64_t> keys;  ///< per stream

  std::int64_t chunks() const noexcept { return geometry.chunks_for(tokens); }
  std::int64_t complete_chunks() const noexcept {
    return geometry.entries_for(tokens) / geometry.entries_per_chunk;
  }
};

/// Bytes of the file that a header describes. \throws format_error if that is more than can be counted
std::uint64_t session_bytes(const session_header& header, const std::string& name);

/// The header with its checksum.
std::vector<std::byte> encode_header(const session_header& header);

/// Reads and checks a header: its checksum, that it describes a file of exactly this size, of `geometry`,
/// with numbers that agree with each other. Allocates nothing in proportion to a number before that is known
/// to fit. \throws format_error naming the field
session_header read_header(byte_source& in, const kv_geometry& geometry);

std::uint64_t section_checksum(const void* data, std::size_t bytes) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
