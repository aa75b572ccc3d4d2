// SPDX-License-Identifier: MIT
#include "src/store/sequence.hpp"

#include <algorithm>
#include <new>

#include "src/store/slot_pool.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

constexpr std::size_t rounded(std::size_t bytes) noexcept { return (bytes + 63) / 64 * 64; }

template <class T>
T* take(std::byte*& at, std::int64_t count) noexcept {
  T* const array = reinterpret_cast<T*>(at);
  for (std::int64_t i = 0; i < count; ++i) new (array + i) T();
  at += rounded(std::size_t(count) * sizeof(T));
  return array;
}

std::size_t array_bytes(std::int64_t count, std::size_t each) noexcept {
  const std::size_t bytes = saturating_multiply(std::size_t(count), each);
  return saturating_add(bytes, 63) / 64 * 64;
}

}  // namespace

std::size_t sequence_block_bytes(const kv_geometry& geometry, std::int64_t quota,
                                 std::int64_t capacity) noexcept {
  std::size_t bytes = rounded(sizeof(sequence_state));
  bytes = saturating_add(bytes, array_bytes(capacity, sizeof(chunk_entry)));
  bytes = saturating_add(bytes, array_bytes(quota, sizeof(pinned_chunk)));
  for (int i = 0; i < 2; ++i) {
    bytes = saturating_add(bytes, array_bytes(quota, sizeof(pinned_chunk)));
    bytes = saturating_add(bytes, array_bytes(quota, sizeof(resident_chunk)));
  }
  return saturating_add(bytes, array_bytes(geometry.index_keys.lanes, sizeof(std::int64_t)));
}

sequence_state* make_sequence(void* block, const kv_geometry& geometry, const sequence_options& options,
                              std::int64_t quota, std::int64_t capacity) noexcept {
  auto* const s = new (block) sequence_state;
  s->geometry = geometry;
  s->options = options;
  s->quota = quota;
  s->capacity = capacity;
  s->whole = options.max_resident_chunks == 0;
  auto* at = static_cast<std::byte*>(block) + rounded(sizeof(sequence_state));
  s->chunks = take<chunk_entry>(at, capacity);
  s->pinned = take<pinned_chunk>(at, quota);
  s->spare = take<pinned_chunk>(at, quota);
  s->coming = take<pinned_chunk>(at, quota);
  s->views[0] = take<resident_chunk>(at, quota);
  s->views[1] = take<resident_chunk>(at, quota);
  s->num_keys = take<std::int64_t>(at, geometry.index_keys.lanes);
  return s;
}

std::uint32_t sequence_state::fresh_mark() noexcept {
  if (++mark == 0) {
    for (std::int64_t i = 0; i < capacity; ++i) chunks[i].mark = 0;
    mark = 1;
  }
  return mark;
}

void sequence_state::build_view(int which, std::int64_t num_entries) noexcept {
  std::int64_t count = 0;
  const std::int64_t whole_chunk = geometry.entries_per_chunk;
  // Between changes of the set only the last chunk grows, and walking all of them in every step would cost more than
  // the rest of its books.
  if (view_versions[which] == set_version && num_view[which] == num_pinned && num_pinned > 0) {
    const std::int64_t readable =
        std::min(num_entries - pinned[num_pinned - 1].id * whole_chunk, whole_chunk);
    if (readable > 0) {
      views[which][num_pinned - 1].entries = static_cast<std::int32_t>(readable);
      return;
    }
  }
  view_versions[which] = set_version;
  for (std::int64_t i = 0; i < num_pinned; ++i) {
    const std::int64_t readable = std::min(num_entries - pinned[i].id * whole_chunk, whole_chunk);
    if (readable <= 0) continue;
    resident_chunk& out = views[which][count++];
    out.id = pinned[i].id;
    out.entries = static_cast<std::int32_t>(readable);
    out.data = pinned[i].record->slot->data;
  }
  num_view[which] = count;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
