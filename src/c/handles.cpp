// SPDX-License-Identifier: MIT
#include "src/c/handles.hpp"

#include <cstdio>

namespace flashmemory {
inline namespace v0 {
namespace c {
namespace {

constexpr std::size_t slots = 4096;
slot table[slots];

/// A handle is a number that no pointer to an object is: odd. From the low end: 1, 3 bits of kind, 12 of slot, 32 of
/// generation, 8 that tell this interface's version from another's.
constexpr std::uint64_t cookie = 0x50 + FM_ABI_VERSION;

void* encode(kind what, std::size_t index, std::uint32_t generation) noexcept {
  const std::uint64_t bits = 1 | std::uint64_t(what) << 1 | std::uint64_t(index) << 4 |
                             std::uint64_t{generation} << 16 | cookie << 48;
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(bits));
}

fm_status refuse_handle(const char* name, const char* why) noexcept {
  char text[160];
  std::snprintf(text, sizeof(text), "%s: %s", name, why);
  return note(FM_BAD_HANDLE, text);
}

std::uint32_t generation_of(std::uint64_t bits) noexcept { return static_cast<std::uint32_t>(bits >> 16); }

}  // namespace

void* make_handle(kind what, void* object, slot** place) noexcept {
  for (std::size_t i = 0; i < slots; ++i) {
    std::int32_t expected = slot::empty;
    if (!table[i].state.compare_exchange_strong(expected, slot::changing)) continue;
    slot& s = table[i];
    s.what = what;
    s.object = object;
    s.dependants = 0;
    const std::uint32_t generation = ++s.generation;
    s.state = 0;
    if (place) *place = &s;
    return encode(what, i, generation);
  }
  note(FM_NO_MEMORY, "there are 4096 objects already");
  return nullptr;
}

slot* find(const void* handle, kind what, const char* name) noexcept {
  const auto bits = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(handle));
  if (bits == 0) {
    refuse_handle(name, "is null");
    return nullptr;
  }
  if ((bits & 1) == 0 || bits >> 48 != cookie) {
    refuse_handle(name, "is no handle of this library, or of another version of it");
    return nullptr;
  }
  if (static_cast<kind>(bits >> 1 & 7) != what) {
    refuse_handle(name, "is a handle of another kind");
    return nullptr;
  }
  slot& s = table[bits >> 4 & (slots - 1)];
  if (s.generation != generation_of(bits) || s.state == slot::empty) {
    refuse_handle(name, "is closed");
    return nullptr;
  }
  return &s;
}

hold::hold(const void* handle, kind what, const char* name, bool alone, bool wanted) noexcept {
  if (!wanted) return;
  slot* const s = find(handle, what, name);
  if (!s) {
    why_ = FM_BAD_HANDLE;
    return;
  }
  take(s, name, alone);
  const auto bits = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(handle));
  if (slot_ && slot_->generation != generation_of(bits)) {  // closed and taken anew in between
    release();
    why_ = refuse_handle(name, "is closed");
  }
}

hold::hold(slot* parent, const char* name, bool alone, bool wanted) noexcept {
  if (wanted) take(parent, name, alone);
}

void hold::take(slot* s, const char* name, bool alone) noexcept {
  std::int32_t seen = s->state.load();
  for (;;) {
    if (seen == slot::empty) {
      why_ = refuse_handle(name, "is closed");
      return;
    }
    if (seen == slot::changing || (alone && seen > 0)) {
      char text[160];
      std::snprintf(text, sizeof(text), "%s: another call is using it", name);
      why_ = note(FM_BUSY, text);
      return;
    }
    if (s->state.compare_exchange_weak(seen, alone ? slot::changing : seen + 1)) break;
  }
  slot_ = s;
  alone_ = alone;
}

void hold::release() noexcept {
  if (!slot_) return;
  if (alone_)
    slot_->state = 0;
  else
    --slot_->state;
  slot_ = nullptr;
}

fm_status hold::close(const char* name) noexcept {
  if (const std::int32_t count = slot_->dependants; count > 0) {
    char text[160];
    std::snprintf(text, sizeof(text), "%s: %d other objects stand on it; close them first", name, int(count));
    return note(FM_IN_USE, text);
  }
  slot_->object = nullptr;
  slot_->what = kind::none;
  slot_->state = slot::empty;
  slot_ = nullptr;
  return FM_OK;
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
