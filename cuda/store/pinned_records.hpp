// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/memory.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Mapped pages that are touched by `threads` threads and then registered with CUDA, so that a large block takes
/// the time of zeroing it and not of pinning it page by page. `*threads` must outlive the resource.
memory_resource touched_pinned_memory(const std::int32_t* threads) noexcept;

/// cudaHostAlloc().
memory_resource allocated_pinned_memory() noexcept;

/// Records in pinned memory that grows by blocks and stays.
class pinned_records {
 public:
  pinned_records(memory_resource memory, std::size_t record_bytes, std::size_t slab_bytes) noexcept;
  ~pinned_records();
  pinned_records(const pinned_records&) = delete;
  pinned_records& operator=(const pinned_records&) = delete;

  void set_limit(std::int64_t records) noexcept { limit_ = records; }

  /// False if there is no memory for records [0, records).
  bool reserve(std::int64_t records) noexcept;

  /// Gives nothing back any more: somebody may still be using it.
  void abandon() noexcept { slabs_.clear(); }

  std::byte* operator[](std::int64_t record) const noexcept {
    return slabs_[std::size_t(record / per_slab_)] + std::size_t(record % per_slab_) * record_bytes_;
  }

 private:
  std::size_t slab_bytes(std::size_t slab) const noexcept;

  memory_resource memory_;
  std::size_t record_bytes_;
  std::int64_t per_slab_;
  std::int64_t limit_ = 0;
  std::vector<std::byte*> slabs_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
