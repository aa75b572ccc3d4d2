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
  std::int64_t index_offset = 0;  ///< from a table entry to the layer's planar lightning keys of that chunk
};

/// Describes the resident chunks of one layer. Allocates nothing; valid until the next call that changes the sequence.
/// \param[out] table  at least as many elements as chunks are resident; what `out` then refers to
/// \returns what reader.resident() returns; unsupported if the store's format is another; bad_shape if `table` is too
///     small (fault: expected, actual), null_data
FLASHMEMORY_API status list_resident(const chunk_reader& reader, sequence_handle sequence, std::int32_t layer,
                                     view<const std::byte*, 1> table, resident_entries* out,
                                     fault* error = nullptr) noexcept;

/// chunk_store::append() in this format's own words: one layer's entries of this forward pass, and the lightning keys that
/// the layer's own indexer scores. Neither is quantised; the store does that.
/// \param[in] entries         [entries, 1, entry_dim], f32 or bf16
/// \param[in] lightning_keys  [entries, 1, lightning_dim], likewise
inline status append(chunk_store& store, batch items, std::int32_t layer, const_tensor<3> entries,
                     const_tensor<3> lightning_keys, stream_ref stream) noexcept {
  return store.append(items, layer, entries, lightning_keys, stream);
}

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
