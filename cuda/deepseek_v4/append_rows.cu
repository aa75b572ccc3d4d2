// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cuda/deepseek_v4/append_rows.hpp"
#include "cuda/deepseek_v4/quantise.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

constexpr int warps = 4;

struct row_table {
  detail::row_target targets[detail::max_row_targets];
};

/// Where a side's rows come from; rows of bf16 or f32 at any address.
struct row_side {
  const std::byte* data;
  std::int64_t stride;  ///< elements
  bool f32;
};

template <int kCount>
__device__ __forceinline__ void load_values(const row_side& from, std::int64_t row, float (&x)[kCount]) {
  const std::int64_t at = row * from.stride + static_cast<int>(threadIdx.x % 32) * kCount;
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    x[i] = from.f32 ? reinterpret_cast<const float*>(from.data)[at + i]
                    : __uint_as_float(std::uint32_t{reinterpret_cast<const std::uint16_t*>(from.data)[at + i]}
                                      << 16);
}

/// Grid: x targets, y entries, a warp each.
__global__ void __launch_bounds__(32 * warps)
    entry_rows_kernel(const row_table table, std::int32_t entries_per_chunk, row_side entries, row_side keys,
                      std::int64_t page) {
  const detail::row_target& target = table.targets[blockIdx.x];
  const auto step = static_cast<std::int32_t>(gridDim.y * warps);
  for (auto i = static_cast<std::int32_t>(blockIdx.y * warps + threadIdx.x / 32); i < target.count;
       i += step) {
    const std::int64_t entry = target.first_entry + i;
    float x[16], key[4];
    load_values(entries, target.first_row + i, x);
    load_values(keys, target.first_row + i, key);
    std::byte* const scales = target.piece + row_bytes * entries_per_chunk;
    write_entry(x, target.piece + entry * row_bytes, scales + entry * scale_row_bytes);
    std::byte* const codes = target.piece + page;
    std::byte* const key_scales = codes + std::int64_t{lightning_dim} * entries_per_chunk;
    write_index_key(key, codes + entry * lightning_dim, key_scales + entry * std::int64_t{sizeof(float)});
  }
}

}  // namespace

cudaError_t launch_entry_rows(const kv_geometry& geometry, const detail::row_target* targets, int count,
                              const const_tensor<3>& k, const const_tensor<3>& v,
                              cudaStream_t stream) noexcept {
  if (count < 1) return cudaSuccess;
  const auto side_of = [](const const_tensor<3>& t) {
    return row_side{static_cast<const std::byte*>(t.data), t.stride[0], t.type == dtype::f32};
  };
  row_table table;
  std::copy(targets, targets + count, table.targets);
  std::int32_t most = 1;
  for (int i = 0; i < count; ++i) most = std::max(most, targets[i].count);
  const dim3 grid(static_cast<unsigned>(count),
                  static_cast<unsigned>(std::min((most + warps - 1) / warps, 64)));
  entry_rows_kernel<<<grid, 32 * warps, 0, stream>>>(table, geometry.entries_per_chunk, side_of(k),
                                                     side_of(v), page_bytes(geometry.entries_per_chunk));
  return cudaGetLastError();
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
