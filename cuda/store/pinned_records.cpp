// SPDX-License-Identifier: MIT
#include "cuda/store/pinned_records.hpp"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <system_error>
#include <thread>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

/// Behind a block's records: no copy may cover records of two blocks, even if these are neighbours.
constexpr std::size_t slab_gap = 64;
constexpr std::size_t page_bytes = 4096, alignment = 4096, huge_page_bytes = std::size_t{2} << 20;

/// A write to each page of the part; pages are zero already.
void touch(std::byte* first, std::byte* last) noexcept {
  for (std::byte* at = first; at < last; at += page_bytes) *reinterpret_cast<volatile char*>(at) = 0;
}

void touch_with_threads(std::byte* block, std::size_t bytes, std::int32_t threads) noexcept {
  const std::size_t part =
      std::max<std::size_t>(bytes / std::size_t(std::max(threads, 1)), std::size_t{16} << 20) / page_bytes *
      page_bytes;
  std::vector<std::thread> workers;
  std::size_t begin = 0;
  try {
    for (; begin + part < bytes; begin += part)
      workers.emplace_back(touch, block + begin, block + begin + part);
  } catch (const std::exception&) {  // no more threads: the rest is done here
  }
  touch(block + begin, block + bytes);
  for (std::thread& worker : workers) worker.join();
}

/// Fresh pages from an address on that only huge pages can begin at.
void* map_pages(std::size_t bytes) noexcept {
  const std::size_t used = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  void* const all =
      ::mmap(nullptr, used + huge_page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<std::uintptr_t>(all);
  const std::size_t before = (huge_page_bytes - begin % huge_page_bytes) % huge_page_bytes;
  std::byte* const block = static_cast<std::byte*>(all) + before;
  if (before > 0) ::munmap(all, before);
  ::munmap(block + used, huge_page_bytes - before);
  return block;
}

void* take(void* context, std::size_t bytes, std::size_t) noexcept {
  void* const block = map_pages(bytes);
  if (!block) return nullptr;
  ::madvise(block, bytes, MADV_HUGEPAGE);
  touch_with_threads(static_cast<std::byte*>(block), bytes, *static_cast<const std::int32_t*>(context));
  if (cudaHostRegister(block, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped) == cudaSuccess)
    return block;
  cudaGetLastError();
  ::munmap(block, bytes);
  return nullptr;
}

void give(void*, void* block, std::size_t bytes, std::size_t) noexcept {
  if (!block) return;
  cudaHostUnregister(block);
  ::munmap(block, bytes);
}

void* take_allocated(void*, std::size_t bytes, std::size_t) noexcept {
  void* block = nullptr;
  if (cudaHostAlloc(&block, bytes, cudaHostAllocPortable | cudaHostAllocMapped) == cudaSuccess) return block;
  cudaGetLastError();
  return nullptr;
}

void give_allocated(void*, void* block, std::size_t, std::size_t) noexcept { cudaFreeHost(block); }

}  // namespace

memory_resource allocated_pinned_memory() noexcept {
  memory_resource resource;
  resource.allocate = take_allocated;
  resource.deallocate = give_allocated;
  return resource;
}

memory_resource touched_pinned_memory(const std::int32_t* threads) noexcept {
  memory_resource resource;
  resource.context = const_cast<std::int32_t*>(threads);
  resource.allocate = take;
  resource.deallocate = give;
  return resource;
}

pinned_records::pinned_records(memory_resource memory, std::size_t record_bytes,
                               std::size_t slab_bytes) noexcept
    : memory_(memory),
      record_bytes_(record_bytes),
      per_slab_(std::max<std::int64_t>(static_cast<std::int64_t>(slab_bytes / record_bytes), 1)) {}

pinned_records::~pinned_records() {
  for (std::size_t i = 0; i < slabs_.size(); ++i)
    memory_.deallocate(memory_.context, slabs_[i], slab_bytes(i), alignment);
}

std::size_t pinned_records::slab_bytes(std::size_t slab) const noexcept {
  const std::int64_t first = static_cast<std::int64_t>(slab) * per_slab_;
  return std::size_t(std::min(per_slab_, limit_ - first)) * record_bytes_ + slab_gap;
}

bool pinned_records::reserve(std::int64_t records) noexcept {
  try {
    while (static_cast<std::int64_t>(slabs_.size()) * per_slab_ < std::min(records, limit_)) {
      slabs_.reserve(slabs_.size() + 1);
      const std::size_t bytes = slab_bytes(slabs_.size());
      void* const block = memory_.allocate(memory_.context, bytes, alignment);
      if (!block) return false;
      slabs_.push_back(static_cast<std::byte*>(block));
    }
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
