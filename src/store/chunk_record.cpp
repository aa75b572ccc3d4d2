// SPDX-License-Identifier: MIT
#include "src/store/chunk_record.hpp"

#include <new>

namespace flashmemory {
inline namespace v0 {
namespace detail {

struct record_segment {
  std::int64_t index = 0;
  std::int64_t count = 0;
  std::int64_t live = 0;
  chunk_record* free = nullptr;
  record_segment* next = nullptr;
  record_segment* next_with_free = nullptr;
  record_segment* previous_with_free = nullptr;
};

namespace {
constexpr std::int64_t records_per_segment = 16;
constexpr std::size_t segment_alignment = 64;
}  // namespace

record_pool::record_pool(fast_memory& memory, std::int64_t layers, std::int64_t max_records) noexcept
    : memory_(memory), layers_(layers), max_records_(max_records) {}

record_pool::~record_pool() { trim_to(0); }

std::int64_t record_pool::segment_records(std::int64_t index) const noexcept {
  const std::int64_t left = max_records_ - index * records_per_segment;
  return left < records_per_segment ? left : records_per_segment;
}

std::size_t record_pool::segment_bytes(std::int64_t index) const noexcept {
  const std::size_t each = sizeof(chunk_record) + std::size_t(layers_) * sizeof(std::uint64_t);
  return sizeof(record_segment) + std::size_t(segment_records(index)) * each;
}

std::size_t record_pool::bytes_to_grow_to(std::int64_t records) const noexcept {
  std::size_t bytes = 0;
  std::int64_t capacity = capacity_;
  const record_segment* at = first_;
  for (std::int64_t index = 0; capacity < records; ++index) {
    if (at && at->index == index) {
      at = at->next;
      continue;
    }
    bytes = saturating_add(bytes, segment_bytes(index));
    capacity += segment_records(index);
  }
  return bytes;
}

bool record_pool::grow_to(std::int64_t records) noexcept {
  record_segment** link = &first_;
  for (std::int64_t index = 0; capacity_ < records; ++index) {
    if (*link && (*link)->index == index) {
      link = &(*link)->next;
      continue;
    }
    void* const block = memory_.allocate(segment_bytes(index), segment_alignment);
    if (!block) return false;
    auto* const segment = new (block) record_segment;
    segment->index = index;
    segment->count = segment_records(index);
    auto* const list = reinterpret_cast<chunk_record*>(segment + 1);
    auto* const sums = reinterpret_cast<std::uint64_t*>(list + segment->count);
    for (std::int64_t i = segment->count - 1; i >= 0; --i) {
      auto* const record = new (list + i) chunk_record;
      record->backing = index * records_per_segment + i;
      record->checksums = sums + i * layers_;
      record->home = segment;
      record->next_free = segment->free;
      segment->free = record;
    }
    segment->next = *link;
    *link = segment;
    link = &segment->next;
    segment->next_with_free = with_free_;
    if (with_free_) with_free_->previous_with_free = segment;
    with_free_ = segment;
    capacity_ += segment->count;
  }
  return true;
}

std::int64_t record_pool::end_with(std::int64_t records) const noexcept {
  std::int64_t end = 0, capacity = capacity_;
  const record_segment* at = first_;
  for (std::int64_t index = 0; at || capacity < records; ++index) {
    const bool there = at && at->index == index;
    if (there)
      at = at->next;
    else if (capacity < records)
      capacity += segment_records(index);
    else
      continue;
    end = index * records_per_segment + segment_records(index);
  }
  return end;
}

void record_pool::trim_to(std::int64_t records) noexcept {
  for (record_segment** link = &first_; *link;) {
    record_segment* const segment = *link;
    if (segment->live > 0 || capacity_ - segment->count < records) {
      link = &segment->next;
      continue;
    }
    *link = segment->next;
    if (segment->previous_with_free)
      segment->previous_with_free->next_with_free = segment->next_with_free;
    else
      with_free_ = segment->next_with_free;
    if (segment->next_with_free) segment->next_with_free->previous_with_free = segment->previous_with_free;
    capacity_ -= segment->count;
    memory_.release(segment, segment_bytes(segment->index), segment_alignment);
  }
}

chunk_record* record_pool::acquire() noexcept {
  record_segment* const segment = with_free_;
  if (!segment) return nullptr;
  chunk_record* const record = segment->free;
  segment->free = record->next_free;
  record->next_free = nullptr;
  ++segment->live;
  ++live_;
  if (!segment->free) {
    with_free_ = segment->next_with_free;
    if (with_free_) with_free_->previous_with_free = nullptr;
    segment->next_with_free = nullptr;
  }
  return record;
}

void record_pool::release(chunk_record* record) noexcept {
  record_segment* const segment = record->home;
  if (!segment->free) {
    segment->previous_with_free = nullptr;
    segment->next_with_free = with_free_;
    if (with_free_) with_free_->previous_with_free = segment;
    with_free_ = segment;
  }
  record->sealed = false;
  record->bad = false;
  record->failures = 0;
  record->references = 0;
  record->pins = 0;
  record->next_free = segment->free;
  segment->free = record;
  --segment->live;
  --live_;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
