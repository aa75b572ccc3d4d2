// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/options.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/deepseek_v4.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace deepseek_v4 {

inline constexpr std::int32_t max_heads = 128;  ///< query heads that one call takes, at most

/// Pages of entries, in host memory on the CPU and in device memory, 16-byte aligned, on CUDA. Entry number i is row i % entries_per_page of page i / entries_per_page.
/// Either all pages have the same distance, or a table says where each lies: the slots of a chunk store.
struct page_pool {
  std::byte* pages = nullptr;          ///< the first page
  std::int64_t page_stride = 0;        ///< bytes from a page to the next, >= page_bytes(entries_per_page)
  std::int64_t num_pages = 0;          ///< pages that may be named
  std::int32_t entries_per_page = 64;  ///< a power of two
  const std::byte* const* table = nullptr;  ///< [num_pages] instead of `pages`: each page lies
  std::int64_t table_offset = 0;  ///< this many bytes after its table entry; append_entries() refuses it
};

/// Quantises rows into their places.
/// \param[in] values    [n, entry_dim], f32 or bf16, unit last stride
/// \param[in] locations [n] entry numbers, distinct; -1 skips a row
/// \returns bad_shape, bad_dtype (f16), bad_argument (pool, or one with a table), null_data, out_of_range (fault:
///     actual = the location; nothing is written)
FLASHMEMORY_API status append_entries(const page_pool& pool, const_tensor<2> values,
                                      view<const std::int32_t, 1> locations, fault* error = nullptr) noexcept;

/// A list of entries per query row, in the backend's memory. On CUDA lists, counts and tables are read when a kernel runs,
/// and entries have unit last stride.
struct entry_source {
  page_pool pool;
  view<const std::int32_t, 2>
      entries;  ///< [rows, capacity] entry numbers; those outside the pool, -1 above all, are
                ///< ignored. A default view, or a capacity of 0, = no entries from here
  view<const std::int32_t, 1>
      counts;  ///< [rows] how many of a row's numbers count, clamped to [0, capacity]; data
               ///< null = all
};

/// Attention of each query row over its sliding window and its selected entries together, under one softmax:
/// out_h = sum_e softmax(scale * q_h . e) e. Float accumulation; zero for a row without entries.
/// \param[in]  q   [rows, heads, entry_dim], any dtype, unit last stride; heads in [1, max_heads]
/// \param[out] out [rows, heads, entry_dim], any dtype, unit last stride; must not overlap q
/// \returns bad_shape, bad_dtype, bad_argument (pool), null_data; `out` is then untouched
FLASHMEMORY_API status sparse_attend(const entry_source& window, const entry_source& selected,
                                     const_tensor<3> q, tensor<3> out,
                                     const attend_options& options) noexcept;

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
