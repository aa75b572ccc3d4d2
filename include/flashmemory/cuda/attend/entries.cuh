// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/page_strides.hpp>
#include <flashmemory/cuda/attend.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {

// Where entries lie. Such a policy is a plain struct, passed to kernels by value, with
//
//   packed              static constexpr bool: the entries of a page and KV head follow each other without a gap
//   list row(r)         what one row of the step attends to, with a member `std::int32_t entries`; entry e is row
//                       e % entries_per_page of the list's page e / entries_per_page
//   page_id page(l, i)  the list's page i
//   keys(p, h), values(p, h)          the K and V of entry 0 of KV head h in a page
//   key_stride(b), value_stride(b)    bytes from an entry to the next, b being those of one entry
//   position(l, e)      of entry e in the sequence: what ALiBi and masks count in; asked for by logits that use it only

/// A page as its policy knows it: an address, a number in a pool.
using page_id = unsigned long long;

/// The rows of chunk_tables and sparse_attend(): each names its chunks by their addresses.
struct chunk_entries {
  static constexpr bool packed = true;

  const chunk_row* rows = nullptr;
  std::int64_t row_stride = 1;                              ///< elements
  std::int64_t key_offset = 0, value_offset = 0;            ///< bytes, of head 0 of the layer in a chunk
  std::int64_t key_block_bytes = 0, value_block_bytes = 0;  ///< of one head

  /// A row's chunks.
  struct list {
    const std::byte* const* chunks;
    std::int32_t entries;
  };
  __device__ __forceinline__ list row(std::int32_t r) const {
    const chunk_row mine = rows[r * row_stride];
    return {mine.chunks, std::int32_t(mine.entries)};
  }
  __device__ __forceinline__ page_id page(const list& l, std::int32_t i) const {
    return reinterpret_cast<page_id>(l.chunks[i]);
  }
  __device__ __forceinline__ const std::byte* keys(page_id p, std::int32_t head) const {
    return reinterpret_cast<const std::byte*>(p) + key_offset + head * key_block_bytes;
  }
  __device__ __forceinline__ const std::byte* values(page_id p, std::int32_t head) const {
    return reinterpret_cast<const std::byte*>(p) + value_offset + head * value_block_bytes;
  }
  __device__ __forceinline__ std::int64_t key_stride(std::int32_t bytes) const { return bytes; }
  __device__ __forceinline__ std::int64_t value_stride(std::int32_t bytes) const { return bytes; }
  /// Chunk rows do not say which chunks of the sequence they list, so this counts in the list.
  __device__ __forceinline__ std::int64_t position(const list&, std::int32_t e) const { return e; }
};

/// An engine's own page table: numbers of pages in a pool of K and one of V (or one pool of both: their strides).
/// \tparam kPacked  the entries of a head follow each other, page_strides::entry being their size: HND, or one KV head.
///     What the tensor-core kernel asks for, with pools and strides that are multiples of 16 bytes
template <bool kPacked>
struct page_entries {
  static constexpr bool packed = kPacked;

  const std::byte* key_pool = nullptr;  ///< device
  const std::byte* value_pool = nullptr;
  page_strides key_strides, value_strides;
  const std::int32_t* table = nullptr;    ///< [rows, table_stride], device: numbers of pages
  const std::int32_t* lengths = nullptr;  ///< [rows], device: entries of each row
  /// [rows, table_stride], device: the position in the sequence of each page's first entry; null = pages are listed from
  /// the sequence's start on, without a gap.
  const std::int32_t* firsts = nullptr;
  std::int64_t table_stride = 0;
  std::int32_t entries_per_page = 0;

  /// A row's pages.
  struct list {
    const std::int32_t* pages;
    const std::int32_t* firsts;
    std::int32_t entries;
  };
  __device__ __forceinline__ list row(std::int32_t r) const {
    return {table + r * table_stride, firsts == nullptr ? nullptr : firsts + r * table_stride, lengths[r]};
  }
  __device__ __forceinline__ page_id page(const list& l, std::int32_t i) const { return page_id(l.pages[i]); }
  __device__ __forceinline__ const std::byte* keys(page_id p, std::int32_t head) const {
    return key_pool + std::int64_t(p) * key_strides.page + head * key_strides.head;
  }
  __device__ __forceinline__ const std::byte* values(page_id p, std::int32_t head) const {
    return value_pool + std::int64_t(p) * value_strides.page + head * value_strides.head;
  }
  __device__ __forceinline__ std::int64_t key_stride(std::int32_t) const { return key_strides.entry; }
  __device__ __forceinline__ std::int64_t value_stride(std::int32_t) const { return value_strides.entry; }
  __device__ __forceinline__ std::int64_t position(const list& l, std::int32_t e) const {
    return l.firsts == nullptr ? e : l.firsts[e / entries_per_page] + e % entries_per_page;
  }
};

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
