// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/io/byte_stream.hpp>
#include <flashmemory/select/policy.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {

class selector;

/// What an engine says of a session besides the sequence.
struct session_options {
  /// Names whatever K and V depend on that the geometry does not show: weights, adapters, tokenizer, quantisation, e.g. a
  /// hash of the checkpoint. At most 256 bytes. A session is loaded only with the very tag that it was saved with; both
  /// may be empty.
  std::string model_tag;

  /// Saving: permissions of a file that is new, less the umask. A file that is replaced keeps its own.
  std::uint32_t permissions = 0600;

  /// Loading: the policy of this sequence, as in selector::attach(); null = the selector's. A saved sequence brings none.
  const selection_policy* policy = nullptr;
};

/// Saves one sequence to `path`: geometry, model tag, K and V of every chunk, index keys with the fingerprint of their
/// encoder, the resident set and, if `select` is given and knows the sequence, its cadence and the key encoder's window.
/// Written to a temporary file beside `path`, synced and renamed over it, so that `path` holds the old session or the
/// new one, never a part. A symbolic link is followed; what is no plain file is refused. What a killed call left behind
/// the next one removes.
/// \throws io_failure; argument_error for a tag that is too long; error with unknown_sequence, stale_sequence,
///     out_of_order in the middle of a forward pass, corrupt_chunk, or unsupported for a store whose index keys lie in
///     device memory
FLASHMEMORY_API void save_session(const chunk_store& store, sequence_handle sequence, const std::string& path,
                                  const selector* select = nullptr, const session_options& session = {});

/// The same bytes to an engine's sink. After an error it holds a part, which load_session() refuses.
/// \throws as above
FLASHMEMORY_API void save_session(const chunk_store& store, sequence_handle sequence, const byte_sink& sink,
                                  const selector* select = nullptr, const session_options& session = {});

/// Opens a sequence with what save_session() wrote. If `select` is given the sequence is attached to it, and
/// continues as if it had never left, under the policy and the limits in force now. With options.max_tokens == 0 the
/// saved options are used. Memory is taken by what the store's budget allows, never by what the file claims.
///
/// Checksums find damage and parts of other files; they do not prove who wrote it.
/// \throws format_error naming the field and both sides if the file is truncated, foreign, of another version (a
///     session of version 1, as builds before 0.1.0 wrote it, is refused by that name), damaged, of another model tag, encoder of index keys or
///     geometry; admission_error as chunk_store::open(); io_failure, also for what is no plain file. On error nothing
///     stays open
FLASHMEMORY_API sequence_handle load_session(chunk_store& store, const std::string& path,
                                             selector* select = nullptr, const sequence_options& options = {},
                                             const session_options& session = {});

/// The same from an engine's source, of which exactly the session's bytes are read.
/// \throws as above
FLASHMEMORY_API sequence_handle load_session(chunk_store& store, const byte_source& source,
                                             selector* select = nullptr, const sequence_options& options = {},
                                             const session_options& session = {});

}  // namespace v0
}  // namespace flashmemory
