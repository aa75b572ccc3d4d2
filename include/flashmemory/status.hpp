// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/config.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {

/// What a call on the decode path reports. Such calls never throw and never print; after anything but `ok`
/// the state is what it was before the call. `pending` is an answer, not a fault.
enum class [[nodiscard]] status : std::int32_t{
    ok = 0,
    bad_shape,           ///< extents of the arguments disagree with each other or with the geometry
    bad_dtype,           ///< the element type is not accepted here
    bad_argument,        ///< a value is out of its documented range
    null_data,           ///< a pointer that must not be null is null
    unknown_sequence,    ///< the handle never named an open sequence of this store
    stale_sequence,      ///< the handle's sequence was closed; its place may hold another one now
    out_of_order,        ///< tokens, layers or keys did not arrive in order
    out_of_range,        ///< a position, chunk or layer beyond what exists
    sequence_full,       ///< the sequence would outgrow the max_tokens it was opened with
    budget_exceeded,     ///< the sequence's resident quota or a budget in bytes has no room
    not_resident,        ///< attention was asked for an entry that is not in the fast tier
    index_keys_missing,  ///< index keys of complete chunks have not been appended
    hidden_missing,      ///< the indexer's hidden states for the current position were not observed
    not_finite,          ///< NaN or Inf where only finite numbers make sense
    workspace_small,     ///< the workspace is smaller than the matching workspace query says
    corrupt_chunk,       ///< a chunk's bytes do not match the checksum taken when it was stored
    io_error,            ///< the operating system refused a read or write; see fault::os_error
    stale_slot,          ///< a fast-tier slot no longer holds the chunk that was expected in it
    unsupported,         ///< no implementation for this dtype, head size or device
    cuda_error,          ///< the CUDA runtime refused; see fault::os_error
    pending,             ///< what was asked about is still under way
    timed_out,           ///< it was still under way at the deadline, or when the caller had no time to wait
};

/// The enumerator's name, e.g. "corrupt_chunk". Never null.
FLASHMEMORY_API const char* to_string(status code) noexcept;

/// What exactly went wrong in the last call that did not return `ok`. Fields that do not apply are -1.
struct fault {
  status code = status::ok;
  std::int64_t sequence = -1;  ///< sequence_handle::index
  std::int64_t chunk = -1;     ///< chunk_id inside that sequence
  std::int64_t layer = -1;
  std::int64_t lane = -1;      ///< of index keys
  std::int64_t expected = -1;  ///< what the call wanted: a position, an extent, a count or bytes
  std::int64_t actual = -1;    ///< what it found instead
  std::int32_t os_error = 0;   ///< errno of the failed system call; with cuda_error the cudaError_t
  const char* what = "";       ///< names the argument or thing, static storage
};

/// One sentence for logs: the code's name, the thing's name and every field that applies. Allocates.
FLASHMEMORY_API std::string describe(const fault& f);

}  // namespace v0
}  // namespace flashmemory
