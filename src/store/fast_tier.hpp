// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/memory.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>
#include <memory>

#include "src/store/chunk_record.hpp"
#include "src/store/fast_memory.hpp"
#include "src/store/slot_pool.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

inline fault make_fault(status code, const char* what, std::int64_t sequence = -1, std::int64_t expected = -1,
                        std::int64_t actual = -1) noexcept {
  fault f;
  f.code = code;
  f.what = what;
  f.sequence = sequence;
  f.expected = expected;
  f.actual = actual;
  return f;
}

/// Rows of one layer that go to one chunk.
struct row_span {
  chunk_record* record = nullptr;  ///< with a slot, or one whose pieces go straight to the backing store
  std::int32_t layer = 0;
  std::int64_t first_row = 0;    ///< in k and v
  std::int64_t first_entry = 0;  ///< in the chunk
  std::int64_t count = 0;
};

/// Everything that touches the bytes of the fast tier, and of the backing store behind it. The store above it
/// keeps the books and never looks at what a slot points to, so that slots may lie where the host cannot
/// reach. A tier that works on a stream keeps this order: what a call asks for happens after everything that
/// earlier calls asked for and after everything queued before it on the stream in force, which is the one
/// that enter() was given last.
///
/// Calls that return a fault fill in what they know; the store adds sequence and chunk.
class fast_tier {
 public:
  virtual ~fast_tier() = default;
  fast_tier(const fast_tier&) = delete;
  fast_tier& operator=(const fast_tier&) = delete;

  /// Where slots and index keys come from.
  virtual memory_resource memory() const noexcept = 0;

  /// Whether the host may touch that memory. If so, a slot's tag lies behind its bytes and memory is given
  /// back at once; else tags lie in host memory, slots come in slabs, and memory is kept until idle().
  virtual bool host_memory() const noexcept = 0;

  /// The device that the memory is of, in the words of a backend that has one.
  virtual const void* device() const noexcept { return nullptr; }

  /// Bytes that set_up() takes from the fast tier's budget.
  virtual std::size_t workspace_bytes() const noexcept = 0;

  /// Makes the backing store, of `records` records, unless it is the engine's own. Throws as the store's
  /// constructor does.
  virtual void open_backing(const store_options& options, std::int64_t records,
                            std::unique_ptr<backing_store> own) = 0;

  /// Takes the workspace; false if there is none.
  virtual bool set_up(fast_memory& memory) noexcept = 0;
  virtual void tear_down(fast_memory& memory) noexcept = 0;

  /// Makes sure that the backing store has memory or space for records [0, records); false if there is none.
  virtual bool reserve_records(std::int64_t records) noexcept = 0;

  /// Waits until nothing that was asked for is under way; false if that is not so at the deadline. For set-up
  /// calls.
  virtual bool idle() noexcept = 0;

  /// Before everything is given back: waits for all work and does without the stream in force from then on, which
  /// may not exist any more.
  virtual void shut_down() noexcept = 0;

  /// Why the last allocation failed, if anything is known: " (cudaMalloc: out of memory)". Static storage.
  virtual const char* allocation_failure() noexcept = 0;

  /// Names the stream of the calls that follow. unsupported if the tier cannot work on it.
  virtual fault enter(stream_ref stream) noexcept = 0;

  /// Makes what is queued on `stream` from now on come after everything that was asked for and everything queued before
  /// on the stream in force, which stays the one it is. For readers that bring a stream of their own.
  virtual fault order(stream_ref stream) const noexcept {
    static_cast<void>(stream);
    return {};
  }

  /// Ends a call that had a stream; of host() streams everything has happened by then.
  virtual fault leave(stream_ref stream) noexcept = 0;

  /// Slots to allocate as one slab when the store is built; none where slots come one by one.
  virtual std::int64_t initial_slots() const noexcept { return 0; }

  /// Fills a free slot with NaNs.
  virtual void poison(fast_slot& slot) noexcept = 0;

  /// Makes a slot that was just acquired ready for rows: zeroes the padding of every layer.
  virtual void prepare(fast_slot& slot) noexcept = 0;

  /// Zeroes the entries of every layer from `first_entry` on, for store_options::scrub.
  virtual fault scrub(fast_slot& slot, std::int64_t first_entry) noexcept {
    static_cast<void>(slot);
    static_cast<void>(first_entry);
    return make_fault(status::unsupported, "scrub");
  }

  /// Starts the rows of one append().
  virtual void begin_rows() noexcept = 0;
  /// Writes rows to the chunk's slot; without one, to its record in the backing store, which whole pieces only
  /// do. k and v may be read as late as in flush_rows().
  virtual fault write_rows(const row_span& span, const const_tensor<3>& k,
                           const const_tensor<3>& v) noexcept = 0;
  virtual fault flush_rows(std::int32_t layer, const const_tensor<3>& k,
                           const const_tensor<3>& v) noexcept = 0;

  /// Writes the chunk in the record's slot through to its record.
  virtual fault seal(chunk_record& record) noexcept = 0;

  /// Starts a group of copies from the backing store. `urgent`: somebody will wait for them.
  virtual void begin_loads(bool urgent) noexcept = 0;
  /// Copies a record to a slot, which need not be its own.
  virtual fault load(const chunk_record& from, fast_slot& slot) noexcept = 0;
  /// Ends the group. \param[out] ticket  for the calls below, above every earlier one's; 0 = everything has
  /// landed. Slots may be released and records written while copies of theirs are under way, and after an error.
  virtual fault flush_loads(std::uint64_t* ticket) noexcept = 0;
  /// ok if the copies have landed, pending, or why they failed. Work queued after ok on any stream sees them.
  virtual fault loaded(std::uint64_t ticket) noexcept = 0;
  /// As loaded(), after waiting until the deadline at most, which makes pending timed_out.
  virtual fault await_loads(std::uint64_t ticket) noexcept = 0;

  /// Writes a chunk in host memory to a record.
  virtual fault write_record(chunk_record& record, const std::byte* chunk) noexcept = 0;
  /// Reads a whole record, or what has been written of one layer, to host memory.
  virtual fault read_record(const chunk_record& record, std::byte* chunk) const noexcept = 0;
  virtual fault read_piece(const chunk_record& record, std::int32_t layer,
                           std::byte* piece) const noexcept = 0;

  /// Where a record lies in host memory, for a tier whose slots are the records themselves; null if they are copies.
  virtual std::byte* record_address(const chunk_record& record) noexcept {
    static_cast<void>(record);
    return nullptr;
  }

  /// Where one layer's piece of a record lies in host memory, as long as nobody has to check it; null if it must be read.
  virtual const std::byte* piece_address(const chunk_record& record, std::int32_t layer) const noexcept {
    static_cast<void>(record);
    static_cast<void>(layer);
    return nullptr;
  }

  /// One slot to another, which was just acquired.
  virtual fault copy_slot(fast_slot& to, const fast_slot& from) noexcept = 0;
  /// Index keys within the fast tier.
  virtual fault copy_keys(std::byte* to, const std::byte* from, std::size_t bytes) noexcept = 0;
  /// A chunk from the fast tier to host memory, and from host memory to a slot that was just acquired.
  virtual fault read_slot(const fast_slot& slot, std::byte* chunk) const noexcept = 0;
  virtual fault write_slot(fast_slot& slot, const std::byte* chunk) noexcept = 0;

  /// Puts rows of keys into the pages at `pages`, from number `first_key` on; keys of a page that are not there
  /// yet become zero. not_finite (actual: the key) if the tier checks them.
  virtual fault append_index_keys(std::byte* pages, std::int64_t first_key,
                                  const view<const std::byte, 2>& keys) noexcept = 0;

 protected:
  fast_tier() = default;
};

/// XXH3 of one layer's piece of a chunk.
FLASHMEMORY_API std::uint64_t checksum(const void* data, std::size_t bytes) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
