// SPDX-License-Identifier: MIT
#include "src/store/slot_pool.hpp"

#include <cstring>
#include <new>

#include "src/core/checked.hpp"
#include "src/store/fast_tier.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Slots in one allocation of data; their tags follow this header.
struct alignas(64) slot_slab {
  std::byte* data = nullptr;
  std::int64_t count = 0;
  std::int64_t in_use = 0;
  bool permanent = false;
  slot_slab* next = nullptr;
};

namespace {

/// Behind a slab's slots, so that slots of two slabs are never neighbours that a single copy could cover: a copy must
/// stay within one allocation.
constexpr std::size_t slab_gap = 64;

std::size_t slab_data_bytes(std::int64_t slots, std::size_t chunk_bytes) noexcept {
  return std::size_t(slots) * chunk_bytes + slab_gap;
}

std::size_t slab_table_bytes(std::int64_t slots) noexcept {
  return sizeof(slot_slab) + std::size_t(slots) * sizeof(fast_slot);
}

}  // namespace

slot_pool::slot_pool(fast_memory& memory, std::size_t chunk_bytes, fast_tier* slow) noexcept
    : memory_(memory),
      chunk_bytes_(chunk_bytes),
      alignment_(slow                  ? 256
                 : chunk_bytes >= 4096 ? 4096
                                       : 64),
      slow_(slow) {}

slot_pool::~slot_pool() {
  trim_to(0);
  for (slot_slab* slab = slabs_; slab; slab = slab->next) slab->permanent = false;
  reclaim(0);
}

std::size_t slot_pool::bytes_for(std::int64_t slots) const noexcept {
  const std::size_t bytes = saturating_multiply(std::size_t(slots), slot_bytes());
  return slow_ && slots > 0 ? saturating_add(bytes, sizeof(slot_slab) + slab_gap) : bytes;
}

bool slot_pool::grow_to(std::int64_t slots) noexcept {
  if (slow_) return slots <= total_ || add_slab(slots - total_);
  while (total_ < slots) {
    if (in_place_) {
      if (!add_in_place()) return false;
      continue;
    }
    auto* const data = static_cast<std::byte*>(memory_.allocate_data(slot_bytes(), alignment_));
    if (!data) return false;
    auto* const slot = new (data + chunk_bytes_) fast_slot;
    slot->data = data;
    add(*slot);
  }
  return true;
}

bool slot_pool::add_in_place() noexcept {
  void* const block = memory_.allocate(sizeof(fast_slot), alignof(fast_slot));
  if (!block) return false;
  if (!memory_.charge(chunk_bytes_)) {
    memory_.release(block, sizeof(fast_slot), alignof(fast_slot));
    return false;
  }
  add(*new (block) fast_slot);
  return true;
}

bool slot_pool::add_first_slab(std::int64_t slots) noexcept {
  if (!add_slab(slots)) return false;
  slabs_->permanent = true;
  first_data_ = slabs_->data;
  first_count_ = slots;
  return true;
}

bool slot_pool::add_slab(std::int64_t slots) noexcept {
  void* const table = memory_.allocate(slab_table_bytes(slots), alignof(slot_slab));
  auto* const data =
      static_cast<std::byte*>(memory_.allocate_data(slab_data_bytes(slots, chunk_bytes_), alignment_));
  if (!table || !data) {
    memory_.release(table, slab_table_bytes(slots), alignof(slot_slab));
    memory_.release_data(data, slab_data_bytes(slots, chunk_bytes_), alignment_);
    return false;
  }
  auto* const slab = new (table) slot_slab;
  slab->data = data;
  slab->count = slots;
  slab->next = slabs_;
  slabs_ = slab;
  auto* const tags = reinterpret_cast<fast_slot*>(slab + 1);
  for (std::int64_t i = slots - 1; i >= 0; --i) {
    auto* const slot = new (tags + i) fast_slot;
    slot->data = data + std::size_t(i) * chunk_bytes_;
    slot->home = slab;
    add(*slot);
  }
  return true;
}

void slot_pool::add(fast_slot& slot) noexcept {
  slot.next_free = free_;
  free_ = &slot;
  ++total_;
  ++available_;
  poison(slot);
}

void slot_pool::trim_to(std::int64_t slots) noexcept {
  while (!slow_ && total_ > slots && free_) {
    fast_slot* const slot = free_;
    free_ = slot->next_free;
    --total_;
    --available_;
    if (in_place_) {
      memory_.release(slot, sizeof(fast_slot), alignof(fast_slot));
      memory_.discharge(chunk_bytes_);
    } else {
      memory_.release_data(slot->data, slot_bytes(), alignment_);
    }
  }
}

void slot_pool::reclaim(std::int64_t slots) noexcept {
  for (slot_slab** link = &slabs_; *link;) {
    slot_slab* const slab = *link;
    if (slab->in_use > 0 || total_ - slab->count < slots || slab->permanent) {
      link = &slab->next;
      continue;
    }
    for (fast_slot** at = &free_; *at;)
      if ((*at)->home == slab)
        *at = (*at)->next_free;
      else
        at = &(*at)->next_free;
    *link = slab->next;
    total_ -= slab->count;
    available_ -= slab->count;
    memory_.release_data(slab->data, slab_data_bytes(slab->count, chunk_bytes_), alignment_);
    memory_.release(slab, slab_table_bytes(slab->count), alignof(slot_slab));
  }
}

bool slot_pool::acquire(chunk_record& record) noexcept {
  fast_slot* const slot = free_;
  if (!slot) return false;
  free_ = slot->next_free;
  --available_;
  if (slot->home) ++slot->home->in_use;
  slot->next_free = nullptr;
  slot->owner = &record;
  if (in_place_) slot->data = in_place_->record_address(record);
  slot->generation = ++generation_;
  record.slot = slot;
  record.generation = slot->generation;
  return true;
}

void slot_pool::release(chunk_record& record) noexcept {
  fast_slot* const slot = record.slot;
  if (!slot) return;
  record.slot = nullptr;
  record.arrival = 0;
  slot->owner = nullptr;
  slot->generation = ++generation_;
  slot->next_free = free_;
  free_ = slot;
  ++available_;
  if (slot->home) --slot->home->in_use;
  poison(*slot);
}

void slot_pool::poison([[maybe_unused]] fast_slot& slot) noexcept {
#if FLASHMEMORY_CHECKED
  if (in_place_) return;  // the record lives on
  // All ones is a NaN in f32, bf16 and f16: whoever reads a free slot sees it in the result.
  if (slow_)
    slow_->poison(slot);
  else
    std::memset(slot.data, 0xff, chunk_bytes_);
#endif
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
