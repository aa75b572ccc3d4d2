// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/top_k.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace top_k {

// What is selected from. Such a policy is a plain struct, passed to kernels by value, with
//
//   select_row row(i)        row i; what is null there is not wanted, `device_count` is not looked at
//   finish(i, row, count)    by all threads of a block once its first `count` ids are written, by whichever of them; for
//                            selections of the k best only. Empty, or something like the translation of ids

/// The rows of select_top_k().
struct row_table {
  const select_row* rows = nullptr;

  __device__ __forceinline__ select_row row(unsigned i) const {
    select_row found = rows[i];
    if (found.device_count != nullptr) found.count = *found.device_count;
    return found;
  }
  __device__ __forceinline__ void finish(unsigned, const select_row&, std::int32_t) const {}
};

/// Rows of a matrix, whose ids are places in an engine's page table: what comes out are its pages.
struct paged_rows {
  const float* scores = nullptr;         ///< [rows, stride], device
  const float* group_max = nullptr;      ///< [rows, group_stride] as select_row::group_max, or null
  const std::int32_t* counts = nullptr;  ///< [rows], device: scores of each row
  const std::int32_t* table = nullptr;   ///< [rows, table_stride], device; null = ids as they are
  std::int32_t* out = nullptr;  ///< [rows, k]: the pages of the k best, in the order of their ids; -1 pads
  std::int64_t stride = 0, group_stride = 0, table_stride = 0;
  std::int32_t k = 0;

  __device__ __forceinline__ select_row row(unsigned i) const {
    select_row r;
    r.scores = scores + i * stride;
    r.group_max = group_max == nullptr ? nullptr : group_max + i * group_stride;
    r.count = counts[i];
    r.k = k;
    r.ids = out + std::int64_t(i) * k;
    return r;
  }
  __device__ __forceinline__ void finish(unsigned i, const select_row& r, std::int32_t count) const {
    __syncthreads();
    for (auto at = static_cast<std::int32_t>(threadIdx.x); at < k;
         at += static_cast<std::int32_t>(blockDim.x)) {
      if (at >= count)
        r.ids[at] = -1;
      else if (table != nullptr)
        r.ids[at] = table[i * table_stride + r.ids[at]];
    }
  }
};

}  // namespace top_k
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
