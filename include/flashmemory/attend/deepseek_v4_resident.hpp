// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/attend/deepseek_v4.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_store.hpp>

namespace flashmemory {
inline namespace v0 {
namespace deepseek_v4 {

/// What one layer may read of a sequence in a store of kv_format::deepseek_v4, numbered anew: entry e is row
/// e % entries_per_chunk of resident chunk e / entries_per_chunk, and all chunks but the last are full. Level 2 scores
/// and selects among these numbers, and sparse_attend() takes them.
struct resident_entries {
  page_pool pool;                 ///< page i is the i-th resident chunk's
  std::int64_t count = 0;         ///< entries that may be read: numbers [0, count)
  std::int64_t index_offset = 0;  ///< from a table entry to the layer's planar index keys of that chunk
};

/// Describes the resident chunks of one layer. Allocates nothing; valid until the next call that changes the sequence.
/// \param[out] table  at least as many elements as chunks are resident; what `out` then refers to
/// \returns what store.resident() returns; unsupported if the store's format is another; bad_shape if `table` is too
///     small (fault: expected, actual), null_data
FLASHMEMORY_API status list_resident(const chunk_store& store, sequence_handle sequence, std::int32_t layer,
                                     view<const std::byte*, 1> table, resident_entries* out,
                                     fault* error = nullptr) noexcept;

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
