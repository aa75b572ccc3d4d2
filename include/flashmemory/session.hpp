// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/store/chunk_store.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {

class selector;

/// Saves one sequence to `path`: geometry, K and V of every chunk, index keys, the resident set and, if
/// `select` is given and knows the sequence, its cadence and the key encoder's window. Written to a temporary
/// file beside `path`, synced and renamed over it, so that `path` holds the old session or the new one, never
/// a part.
/// \throws io_failure; error with unknown_sequence, stale_sequence or corrupt_chunk
FLASHMEMORY_API void save_session(const chunk_store& store, sequence_handle sequence, const std::string& path,
                                  const selector* select = nullptr);

/// Opens a sequence with what save_session() wrote. If `select` is given the sequence is attached to it, and
/// continues as if it had never left. With options.max_tokens == 0 the saved options are used.
/// \throws format_error naming the field if the file is truncated, foreign, of another version, damaged, or
///     of another geometry; admission_error as chunk_store::open(); io_failure. On error nothing stays open.
FLASHMEMORY_API sequence_handle load_session(chunk_store& store, const std::string& path,
                                             selector* select = nullptr,
                                             const sequence_options& options = {});

}  // namespace v0
}  // namespace flashmemory
