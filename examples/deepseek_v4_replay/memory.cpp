// SPDX-License-Identifier: MIT
#include "memory.hpp"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <thread>

namespace replay {

namespace {

constexpr std::size_t page = 4096;

/// Writes a byte into every page of its part, so that the pages exist and no page fault is left to one thread.
void touch(void* block, std::size_t bytes, int threads) {
  std::vector<std::thread> workers;
  const std::size_t part = (bytes / std::size_t(threads) + page) / page * page;
  for (std::size_t from = 0; from < bytes; from += part)
    workers.emplace_back([=] {
      for (std::size_t at = from; at < std::min(from + part, bytes); at += page)
        static_cast<volatile char*>(block)[at] = 0;
    });
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

flashmemory::memory_resource counted_device_memory::resource() noexcept {
  flashmemory::memory_resource r;
  r.context = this;
  r.allocate = [](void* self, std::size_t bytes, std::size_t) -> void* {
    void* block = nullptr;
    if (cudaMalloc(&block, bytes) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    static_cast<counted_device_memory*>(self)->in_use_ += bytes;
    return block;
  };
  r.deallocate = [](void* self, void* block, std::size_t bytes, std::size_t) {
    cudaFree(block);
    static_cast<counted_device_memory*>(self)->in_use_ -= bytes;
  };
  return r;
}

pinned_arena::~pinned_arena() { trim(); }

void pinned_arena::trim() noexcept {
  for (auto& [bytes, blocks] : free_)
    for (void* const block : blocks) {
      cudaHostUnregister(block);
      munmap(block, bytes);
    }
  free_.clear();
}

void* pinned_arena::take(std::size_t bytes) {
  auto& kept = free_[bytes];
  if (!kept.empty()) {
    void* const block = kept.back();
    kept.pop_back();
    return block;
  }
  void* const block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return nullptr;
  madvise(block, bytes, MADV_HUGEPAGE);
  touch(block, bytes, threads_);
  if (cudaHostRegister(block, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable) == cudaSuccess)
    return block;
  cudaGetLastError();
  munmap(block, bytes);
  return nullptr;
}

void pinned_arena::give(void* block, std::size_t bytes) { free_[bytes].push_back(block); }

flashmemory::memory_resource pinned_arena::resource() noexcept {
  flashmemory::memory_resource r;
  r.context = this;
  r.allocate = [](void* self, std::size_t bytes, std::size_t) -> void* {
    return static_cast<pinned_arena*>(self)->take((bytes + page - 1) / page * page);
  };
  r.deallocate = [](void* self, void* block, std::size_t bytes, std::size_t) {
    static_cast<pinned_arena*>(self)->give(block, (bytes + page - 1) / page * page);
  };
  return r;
}

}  // namespace replay
