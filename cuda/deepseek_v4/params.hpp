// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/deepseek_v4.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

/// A page_pool as kernels take it.
struct device_pool {
  std::byte* pages = nullptr;
  const std::byte* const* table = nullptr;
  std::int64_t step = 0;  ///< bytes from page to page, or from a table entry to its page
  std::uint32_t entries = 0;
  std::int32_t page_shift = 0;
};

/// A row's list: numbers below `count` of them count.
struct device_list {
  const std::int32_t* entries = nullptr;
  const std::int32_t* counts = nullptr;
  std::int64_t stride = 0;
  std::int32_t capacity = 0;
};

struct attend_params {
  device_pool window_pool, selected_pool;
  device_list window, selected;
  const void* q = nullptr;
  void* out = nullptr;
  const float* sinks = nullptr;
  float* lse = nullptr;
  void* scratch = nullptr;  ///< part_bytes per block, if blocks share rows
  float scale_log2 = 0;     ///< of logits, to the base 2
  std::int32_t heads = 0;
};

/// Largest cluster that plans use: what every device of this kind takes.
inline constexpr std::int32_t max_cluster = 8;

/// What a block leaves for the others of its cluster in scratch, if dims are split: f16 values of 64 heads, divided by
/// the number of parts of the dims; and a part's stats.
inline constexpr std::int64_t part_values_bytes = 65536, part_stats_bytes = 1024;

/// How a row's work is cut: attend_plan has the same fields.
struct attend_cut {
  std::int32_t splits = 1, dim_splits = 1;
};

/// The cut that takes least time; a function of its arguments alone. `clusters[n]` clusters of n blocks run at a time.
attend_cut choose_cut(const attend_shape& shape, const int (&clusters)[max_cluster + 1]) noexcept;

// Return a cudaError_t.
int launch_attend_sm90(const attend_params& params, std::int64_t rows, const attend_cut& cut,
                       void* stream) noexcept;
int resident_clusters(std::int32_t splits, int* clusters) noexcept;
int launch_attend_any(const attend_params& params, std::int64_t rows, void* stream) noexcept;

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
