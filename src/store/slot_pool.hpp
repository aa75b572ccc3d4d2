// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/store/chunk_record.hpp"
#include "src/store/fast_memory.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

class fast_tier;
struct slot_slab;

/// Room for one chunk in the fast tier. Where the host can reach that tier, the tag lies behind the chunk's
/// bytes in the same allocation.
struct alignas(64) fast_slot {
  std::byte* data = nullptr;
  const chunk_record* owner = nullptr;  ///< null while free
  std::uint64_t generation = 0;         ///< new each time the slot is handed out
  fast_slot* next_free = nullptr;
  slot_slab* home = nullptr;  ///< null where slots are allocated one by one
  std::uint64_t loads = 0;  ///< ticket of the newest copy into the slot that a tier with streams has started
  std::uint64_t saves = 0;  ///< likewise of the newest copy out of it
};

/// True if `record` is in the fast tier and its slot agrees.
inline bool holds(const chunk_record& record) noexcept {
  return record.slot && record.slot->owner == &record && record.slot->generation == record.generation;
}

/// Slots of one size. In host memory they are allocated one by one, so that there is neither fragmentation nor
/// one huge block; elsewhere allocating is slow and giving back has to wait for what is under way, so they
/// come in slabs that stay until reclaim().
class slot_pool {
 public:
  /// \param slow  the tier that allocates slowly; null for host memory
  slot_pool(fast_memory& memory, std::size_t chunk_bytes, fast_tier* slow = nullptr) noexcept;
  ~slot_pool();
  slot_pool(const slot_pool&) = delete;
  slot_pool& operator=(const slot_pool&) = delete;

  /// Slots are from now on where records lie in host memory, instead of copies of them: being resident then is a matter of
  /// the books, which count the same bytes. Before the first slot is made.
  void use_records_of(fast_tier& tier) noexcept { in_place_ = &tier; }

  /// What one slot takes from the fast tier.
  std::size_t slot_bytes() const noexcept { return chunk_bytes_ + sizeof(fast_slot); }
  /// What `slots` more slots take.
  std::size_t bytes_for(std::int64_t slots) const noexcept;

  /// Makes `slots` slots in all. False if memory ran out; what was allocated until then stays for trim_to().
  bool grow_to(std::int64_t slots) noexcept;

  /// Makes a slab that stays for the life of a slow pool, before any other.
  bool add_first_slab(std::int64_t slots) noexcept;
  /// Where it begins, and how many slots it has.
  std::byte* first_slab() const noexcept { return first_data_; }
  std::int64_t first_slab_slots() const noexcept { return first_count_; }

  /// Gives back free slots while there are more than `slots`. Slabs stay.
  void trim_to(std::int64_t slots) noexcept;

  /// Gives back slabs without a slot in use while `slots` slots remain. Nothing may be under way.
  void reclaim(std::int64_t slots) noexcept;

  /// Gives `record` a slot; false when none is free. Never allocates.
  bool acquire(chunk_record& record) noexcept;

  /// Takes the slot of `record` back; harmless if it has none.
  void release(chunk_record& record) noexcept;

  std::int64_t total() const noexcept { return total_; }
  std::int64_t available() const noexcept { return available_; }

 private:
  bool add_slab(std::int64_t slots) noexcept;
  bool add_in_place() noexcept;
  void add(fast_slot& slot) noexcept;
  void poison(fast_slot& slot) noexcept;

  fast_memory& memory_;
  std::size_t chunk_bytes_;
  std::size_t alignment_;
  fast_tier* slow_;
  fast_tier* in_place_ = nullptr;
  std::int64_t total_ = 0;
  std::int64_t available_ = 0;
  std::uint64_t generation_ = 0;
  fast_slot* free_ = nullptr;
  slot_slab* slabs_ = nullptr;
  std::byte* first_data_ = nullptr;
  std::int64_t first_count_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
