// SPDX-License-Identifier: MIT
#include "store/slot_pool.hpp"

#include <cstring>
#include <new>

namespace flashmemory {
inline namespace v0 {
namespace detail {

slot_pool::slot_pool(fast_memory& memory, std::size_t chunk_bytes) noexcept
    : memory_(memory), chunk_bytes_(chunk_bytes), alignment_(chunk_bytes >= 4096 ? 4096 : 64) {}

slot_pool::~slot_pool() { trim_to(0); }

bool slot_pool::grow_to(std::int64_t slots) noexcept {
  while (total_ < slots) {
    auto* const data = static_cast<std::byte*>(memory_.allocate(slot_bytes(), alignment_));
    if (!data) return false;
    auto* const slot = new (data + chunk_bytes_) fast_slot;
    slot->data = data;
    slot->next_free = free_;
    free_ = slot;
    ++total_;
    ++available_;
    poison(*slot);
  }
  return true;
}

void slot_pool::trim_to(std::int64_t slots) noexcept {
  while (total_ > slots && free_) {
    fast_slot* const slot = free_;
    free_ = slot->next_free;
    --total_;
    --available_;
    memory_.release(slot->data, slot_bytes(), alignment_);
  }
}

bool slot_pool::acquire(chunk_record& record) noexcept {
  fast_slot* const slot = free_;
  if (!slot) return false;
  free_ = slot->next_free;
  --available_;
  slot->next_free = nullptr;
  slot->owner = &record;
  slot->generation = ++generation_;
  record.slot = slot;
  record.generation = slot->generation;
  return true;
}

void slot_pool::release(chunk_record& record) noexcept {
  fast_slot* const slot = record.slot;
  if (!slot) return;
  record.slot = nullptr;
  slot->owner = nullptr;
  slot->generation = ++generation_;
  slot->next_free = free_;
  free_ = slot;
  ++available_;
  poison(*slot);
}

void slot_pool::poison([[maybe_unused]] fast_slot& slot) noexcept {
#ifndef NDEBUG
  // All ones is a NaN in f32, bf16 and f16: whoever reads a free slot sees it in the result.
  std::memset(slot.data, 0xff, chunk_bytes_);
#endif
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
