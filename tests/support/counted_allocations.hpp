// SPDX-License-Identifier: MIT
#pragma once

// Counts every allocation of the program, and refuses one of them on demand: it replaces operator new, so one source file of a program of its own includes
// it.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::int64_t> allocations{0};
/// Allocations that still succeed before one, and only one, is refused; negative = all do.
[[maybe_unused]] std::atomic<std::int64_t> allocations_left{-1};

void* counted_or_null(std::size_t bytes, std::size_t alignment) noexcept {
  ++allocations;
  if (allocations_left >= 0 && allocations_left-- == 0) return nullptr;
  const std::size_t a = alignment < sizeof(void*) ? sizeof(void*) : alignment;
  return std::aligned_alloc(a, (bytes + a) / a * a);
}

void* counted(std::size_t bytes, std::size_t alignment) {
  void* const p = counted_or_null(bytes, alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

// Not inlined, or GCC takes the free() in them for the mismatch it warns of.
[[gnu::noinline]] void* operator new(std::size_t n) { return counted(n, alignof(std::max_align_t)); }
[[gnu::noinline]] void* operator new[](std::size_t n) { return counted(n, alignof(std::max_align_t)); }
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a) { return counted(n, std::size_t(a)); }
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a) {
  return counted(n, std::size_t(a));
}
[[gnu::noinline]] void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
  return counted_or_null(n, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return counted_or_null(n, std::size_t(a));
}
[[gnu::noinline]] void* operator new[](std::size_t n, const std::nothrow_t&) noexcept {
  return counted_or_null(n, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return counted_or_null(n, std::size_t(a));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
