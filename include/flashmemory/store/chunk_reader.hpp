// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/store/sequence.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// A chunk that attention may read now.
struct resident_chunk {
  chunk_id id = 0;
  std::int32_t entries = 0;         ///< readable entries, counted from the chunk's first
  const std::byte* data = nullptr;  ///< one chunk in chunk_layout; host memory on the CPU backend
};

/// The resident set of one sequence, ascending by id. Valid until the next call that changes this sequence.
struct resident_set {
  const resident_chunk* chunks = nullptr;
  std::int64_t count = 0;
  std::int64_t tokens = 0;  ///< tokens of the asked layer that are there
  std::uint64_t version =
      0;  ///< another one whenever chunks have come or gone; never 0. With the same one the set has
          ///< the same chunks in the same places, of which only the last may have grown
};

/// Index keys of one sequence and lane, whole history, contiguous in pages of keys_per_chunk keys.
struct index_key_pages {
  const std::byte* data = nullptr;
  std::int64_t keys = 0;  ///< appended so far
};

/// What attention, indexers and device tables see of a KV cache: sequences in chunks, and which of them may be read now.
/// A chunk_store is one; an engine that keeps a paged cache of its own becomes one by these functions, and then uses
/// attention and scoring without a store of ours.
///
/// Calls may run beside each other, but not beside what changes the cache.
class FLASHMEMORY_API chunk_reader {
 public:
  virtual ~chunk_reader() = default;
  chunk_reader(const chunk_reader&) = delete;
  chunk_reader& operator=(const chunk_reader&) = delete;

  /// What the chunks hold; the same for as long as the reader lives.
  virtual const kv_geometry& geometry() const noexcept = 0;

  /// What attention over `layer` may read now.
  /// \param[out] out    the set, with its version
  /// \param      known  version of the caller's last look at this sequence, 0 before the first. If it is still the set's,
  ///     the reader need not check the chunks' places again
  /// \returns stale_slot if a slot was found to hold another chunk (counted, never masked)
  virtual status resident(sequence_handle sequence, std::int32_t layer, resident_set* out,
                          std::uint64_t known = 0) const noexcept = 0;

  /// The index keys of one lane that level 1 scans.
  virtual status index_keys(sequence_handle sequence, std::int32_t lane,
                            index_key_pages* out) const noexcept = 0;

  /// Length, residency and bytes of one sequence.
  virtual status info(sequence_handle sequence, sequence_info* out) const noexcept = 0;

  /// Whether the handle names an open sequence. Asking is never a fault; a reader that counts or notes faults overrides it.
  virtual bool is_open(sequence_handle sequence) const noexcept {
    sequence_info ignored;
    return info(sequence, &ignored) == status::ok;
  }

  /// Copies one chunk in chunk_layout to `out` [chunk_bytes], from whichever tier has it; entries that are
  /// not there yet are zero. For sessions, transfers between hosts and summaries.
  virtual status read_chunk(sequence_handle sequence, chunk_id chunk,
                            view<std::byte, 1> out) const noexcept = 0;

  /// Where one layer's part of a chunk lies in host memory, [chunk_layout::layer_bytes()], whether it is resident or not;
  /// null if it has to be read, as it always is by default. Valid as long as what resident() shows.
  virtual const std::byte* layer_address(sequence_handle sequence, chunk_id chunk,
                                         std::int32_t layer) const noexcept {
    static_cast<void>(sequence);
    static_cast<void>(chunk);
    static_cast<void>(layer);
    return nullptr;
  }

  /// Copies one layer's part of a chunk to `out` [chunk_layout::layer_bytes()], from whichever tier has it: what attention
  /// over chunks that are not resident needs. A reader all of whose chunks are resident need not.
  /// \returns unsupported by default; io_error, corrupt_chunk (fault: chunk)
  virtual status read_layer(sequence_handle sequence, chunk_id chunk, std::int32_t layer,
                            view<std::byte, 1> out) const noexcept {
    static_cast<void>(sequence);
    static_cast<void>(chunk);
    static_cast<void>(layer);
    static_cast<void>(out);
    return status::unsupported;
  }

  /// Makes `stream` wait for whatever is still writing what resident(), index_keys() and layer_address() show, so that work enqueued on it
  /// from here on reads that. Device tables and selectors ask before they read. Nothing to do by default.
  /// \returns a fault of code ok, or of cuda_error
  virtual fault order(stream_ref stream) const noexcept {
    static_cast<void>(stream);
    return {};
  }

  /// The one place to look after any call of a step that did not return ok: details of the last such call, const calls
  /// and those of attention, selectors and tables over this reader included, or of the chunk that a recall left out last,
  /// whichever is newer; with several threads in const calls, of any of them.
  virtual fault last_fault() const noexcept = 0;

  /// Takes note of a fault that a call over this reader met, for last_fault(). A reader need not.
  virtual void note(const fault&) const noexcept {}

 protected:
  chunk_reader() = default;
};

}  // namespace v0
}  // namespace flashmemory
