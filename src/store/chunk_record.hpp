// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/store/fast_memory.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

struct fast_slot;
struct record_segment;

/// chunk_record::arrival of a slot whose copy has failed.
inline constexpr std::uint64_t lost_arrival = ~std::uint64_t{0};

/// One stored chunk, whichever sequences share it.
struct chunk_record {
  std::int64_t backing = -1;           ///< its record in the backing store
  fast_slot* slot = nullptr;           ///< where it is resident, or null
  std::uint64_t generation = 0;        ///< what the slot's generation must be
  std::uint64_t arrival = 0;           ///< of a slot that is being filled: ticket of the copies; 0 = filled
  std::uint64_t* checksums = nullptr;  ///< [layers], of the pieces in the backing store
  std::int32_t references = 0;         ///< sequences that contain it
  std::int32_t pins = 0;               ///< resident sets that contain it, those under way included
  bool sealed = false;                 ///< complete, and complete in the backing store
  bool bad = false;                    ///< given up as unreadable
  std::int32_t failures = 0;           ///< reads running that the medium has refused
  record_segment* home = nullptr;
  chunk_record* next_free = nullptr;
};

/// Records for as many chunks as open sequences have reserved. They come in small segments, each with a fixed
/// range of the backing store, so that records keep their address and an unused segment can be given back.
class record_pool {
 public:
  record_pool(fast_memory& memory, std::int64_t layers, std::int64_t max_records) noexcept;
  ~record_pool();
  record_pool(const record_pool&) = delete;
  record_pool& operator=(const record_pool&) = delete;

  /// Bytes that grow_to() would allocate.
  std::size_t bytes_to_grow_to(std::int64_t records) const noexcept;

  /// Makes room for `records` records in all, at most max_records. False if memory ran out; what was
  /// allocated until then stays for trim_to().
  bool grow_to(std::int64_t records) noexcept;

  /// Gives back segments that are unused and not needed for `records` records.
  void trim_to(std::int64_t records) noexcept;

  /// A fresh record without references; null when all are taken. Never allocates.
  chunk_record* acquire() noexcept;
  void release(chunk_record* record) noexcept;

  /// One past the largest chunk_record::backing that acquire() may give out once grow_to(records) has been called.
  std::int64_t end_with(std::int64_t records) const noexcept;

  std::int64_t max_records() const noexcept { return max_records_; }
  std::int64_t available() const noexcept { return capacity_ - live_; }

 private:
  std::size_t segment_bytes(std::int64_t index) const noexcept;
  std::int64_t segment_records(std::int64_t index) const noexcept;

  fast_memory& memory_;
  std::int64_t layers_;
  std::int64_t max_records_;
  std::int64_t capacity_ = 0;
  std::int64_t live_ = 0;
  record_segment* first_ = nullptr;      ///< all, ascending by index
  record_segment* with_free_ = nullptr;  ///< those that have a free record
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
