// SPDX-License-Identifier: MIT
#pragma once

// Exact top-k by a cluster of blocks per row. Some bound is found that k of the maxima of groups of 16 scores reach;
// then k scores reach it, and every score that does is in a group whose maximum does. So the groups that reach it are
// collected, then their scores that do, usually little more than k, and of those the best are found exactly. Reading
// N / 16 + 16 k scores replaces reading N.
//
// Where the bound leaves too much, because most scores are equal, one block finds the groups with the k largest
// maxima exactly, then the k largest of their scores. Every score above the k-th largest maximum is in one of them,
// as fewer than k groups have a larger maximum; and so is, of the scores that equal it, each of the newest ones that
// are still wanted, because groups are ranked like scores, newer first, and each has at least one such score.
//
// The scorer writes the maxima; for scores from elsewhere group_max_kernel does.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/core/launch.cuh>
#include <flashmemory/cuda/top_k/block_select.cuh>
#include <flashmemory/cuda/top_k/rows.cuh>
#include <flashmemory/cuda/top_k/shortlist.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Selection of the best scores, for engines that instantiate it with rows of their own: see rows.cuh.
namespace top_k {
namespace detail {

inline constexpr int max_threads = 512;                 // of group_max_kernel
inline constexpr std::int32_t direct_elements = 16384;  // rows that are not worth the detour by way of maxima
inline constexpr int select_bytes = most_quads * select_threads * 16;
static_assert(sizeof(shortlist_memory) <= select_bytes, "the same memory");

__device__ __forceinline__ void begin_overlapped() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
#endif
}

__device__ __forceinline__ void load_quad(const float* scores, std::int64_t at, std::int32_t count,
                                          std::uint32_t* keys) {
  if (at + 3 < count && reinterpret_cast<std::uintptr_t>(scores + at) % 16 == 0) {
    const float4 four = *reinterpret_cast<const float4*>(scores + at);
    keys[0] = ordered_key(four.x);
    keys[1] = ordered_key(four.y);
    keys[2] = ordered_key(four.z);
    keys[3] = ordered_key(four.w);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (at + i < count) keys[i] = ordered_key(scores[at + i]);
  }
}

__device__ __forceinline__ bool needs_maxima(const select_row& row) {
  return row.group_max == nullptr && row.count > direct_elements;
}

// Grid: x blocks go over each row, y is the row. A quad of lanes owns a group.
template <class Rows>
static __global__ void __launch_bounds__(max_threads)
    group_max_kernel(const Rows rows, float* maxima, std::int64_t stride) {
  begin_overlapped();
  const select_row row = rows.row(blockIdx.y);
  if (!needs_maxima(row) || row.count > stride * score_group) return;
  const float* const scores = row.scores;
  const auto count = static_cast<std::int32_t>(row.count);
  float* const out = maxima + stride * blockIdx.y;
  constexpr int unroll = 4;
  const std::int64_t step = std::int64_t{gridDim.x} * max_threads * 4;
  const std::int64_t lane_at = threadIdx.x % 32 * 4;
  for (std::int64_t base = (blockIdx.x * max_threads + threadIdx.x) * 4 - lane_at; base < count;
       base += unroll * step) {
    const std::int64_t at = base + lane_at;
    std::uint32_t keys[unroll][4] = {};
#pragma unroll
    for (int u = 0; u < unroll; ++u) load_quad(scores, at + u * step, count, keys[u]);
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      std::uint32_t best = max(max(keys[u][0], keys[u][1]), max(keys[u][2], keys[u][3]));
      best = max(best, __shfl_xor_sync(~0u, best, 1));
      best = max(best, __shfl_xor_sync(~0u, best, 2));
      const std::int64_t first = at + u * step;
      if (first % score_group == 0 && first < count) out[first / score_group] = ordered_score(best);
    }
  }
}

inline __device__ void count_nans(const select_row& row, select_state& state) {
  std::uint32_t found = 0;
#pragma unroll 1
  for (std::int64_t i = threadIdx.x; i < row.count; i += select_threads)
    found += isnan(row.scores[i]) ? 1 : 0;
  std::uint32_t total;
  scan_exclusive(found, state, 0, total);
  if (threadIdx.x == 0) *row.nans = static_cast<std::int32_t>(total);
  __syncthreads();
}

// Dynamic shared memory: select_bytes. Grid: kBlocks for each row, in clusters.
template <int kBlocks, class Rows>
static __global__ void __launch_bounds__(select_threads)
    top_k_kernel(const Rows rows, const float* maxima, std::int64_t stride) {
  extern __shared__ uint4 keys[];
  __shared__ select_state state;
  __shared__ std::int32_t groups[max_top_k];
  __shared__ std::int32_t counts[slices];
#if __CUDA_ARCH__ < 900
  if constexpr (kBlocks == 1) {
#else
  {
#endif
    using cluster = block_cluster<kBlocks>;
    cluster::arrive();
    begin_overlapped();
    const select_row row = rows.row(blockIdx.x / kBlocks);
    const bool leads = cluster::rank() == 0;
    const auto count = static_cast<std::int32_t>(row.count > 0 ? row.count : 0);
    const std::int32_t k = min(min(row.k > 0 ? row.k : 0, max_top_k), count);
    if (leads && row.nans != nullptr) count_nans(row, state);
    if (leads && threadIdx.x == 0 && row.selected != nullptr) *row.selected = k;
    if (k == count) {
      cluster::wait();
      for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); leads && i < k; i += select_threads)
        row.ids[i] = row.first_id + i;
      if (leads) rows.finish(blockIdx.x / kBlocks, row, k);
      return;
    }
    if (k == 0) {
      cluster::wait();
      return;
    }
    const std::int32_t num_groups = (count + score_group - 1) / score_group;
    const float* best = row.group_max;
    if (best == nullptr && maxima != nullptr && row.count <= stride * score_group)
      best = maxima + stride * (blockIdx.x / kBlocks);
    const bool direct = count <= direct_elements || best == nullptr || num_groups <= k;
    auto& memory = *reinterpret_cast<shortlist_memory*>(keys);
    key_range range;
    const std::int32_t part = shortlist<kBlocks>(row.scores, direct ? nullptr : best, count,
                                                 static_cast<std::uint32_t>(k), state, memory, counts, range);
    if (!leads) return;
    if (part > 0) {
      const listed_keys elements(memory, part, counts);
      elements.emit(find_cutoff(elements, static_cast<std::uint32_t>(k), state, &range), state, row.ids,
                    row.first_id);
      rows.finish(blockIdx.x / kBlocks, row, k);
      return;
    }
    __syncthreads();
    // Unusual: many equal scores, NaN almost everywhere, the best all in one part of a long row.
    element_list list{direct ? row.scores : best, direct ? count : num_groups, nullptr,
                      direct ? count : num_groups};
#pragma unroll 1
    for (bool last = direct;; last = true) {
      const block_keys elements(list, keys, most_quads);
      const cutoff cut = find_cutoff(elements, static_cast<std::uint32_t>(k), state);
      emit(elements, cut, state, last ? row.ids : groups, k, last ? row.first_id : 0);
      if (last) {
        rows.finish(blockIdx.x / kBlocks, row, k);
        return;
      }
      __syncthreads();
      list = {row.scores, count, groups, k * score_group};
    }
  }
}

template <class Rows>
static __global__ void __launch_bounds__(select_threads) above_kernel(const Rows rows) {
  extern __shared__ uint4 keys[];
  __shared__ select_state state;
  begin_overlapped();
  const select_row row = rows.row(blockIdx.x);
  const auto count = static_cast<std::int32_t>(row.count > 0 ? row.count : 0);
  if (row.nans != nullptr) count_nans(row, state);
  std::uint32_t found = 0;
  if (count > 0 && !isnan(row.threshold)) {
    const block_keys elements({row.scores, count, nullptr, count}, keys, most_quads);
    found = emit(elements, {ordered_key(row.threshold), ~0u}, state, row.ids, row.capacity, row.first_id);
  }
  if (threadIdx.x == 0 && row.selected != nullptr) *row.selected = static_cast<std::int32_t>(found);
}

struct device_facts {
  int sms = 0;
  bool overlaps = false;  // programmatic dependent launch
};

inline cudaError_t look_at_device(device_facts* facts) noexcept {
  int device = 0, major = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&facts->sms, cudaDevAttrMultiProcessorCount, device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  facts->overlaps = major >= 9;
  return code;
}

template <int kBlocks, class Rows>
cudaError_t launch_top_k(const Rows& rows, std::int32_t num_rows, const float* maxima, std::int64_t stride,
                         cudaStream_t stream) noexcept {
  const cudaError_t code = cudaFuncSetAttribute(top_k_kernel<kBlocks, Rows>,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize, select_bytes);
  if (code != cudaSuccess) return code;
  return cuda::detail::launch_overlapped(top_k_kernel<kBlocks, Rows>,
                                         dim3(static_cast<unsigned>(num_rows) * kBlocks), select_threads,
                                         select_bytes, stream, kBlocks > 1, kBlocks, rows, maxima, stride);
}

inline std::int64_t groups_of(
    std::int64_t count) noexcept {  // a multiple of 4, so that rows of maxima stay aligned
  return count > direct_elements ? ((count + score_group - 1) / score_group + 3) / 4 * 4 : 0;
}

}  // namespace detail

/// Bytes of device workspace that launch_top_k() needs: see top_k_workspace_bytes().
inline std::size_t workspace_bytes(std::int32_t num_rows, std::int64_t max_count) noexcept {
  if (num_rows <= 0) return 0;
  return static_cast<std::size_t>(num_rows) * static_cast<std::size_t>(detail::groups_of(max_count)) *
         sizeof(float);
}

/// Selects each row's min(k, count) largest scores, as select_top_k() says. Enqueues; never allocates, can be captured.
/// \param num_rows   between 1 and 65535
/// \param max_count  no row that has no group_max is longer
/// \param scratch    device, 16-byte aligned, workspace_bytes(num_rows, max_count); may be null if that is 0
template <class Rows>
cudaError_t launch_top_k(const Rows& rows, std::int32_t num_rows, std::int64_t max_count, void* scratch,
                         cudaStream_t stream) noexcept {
  detail::device_facts facts;
  cudaError_t code = detail::look_at_device(&facts);
  if (code != cudaSuccess) return code;
  float* const maxima = workspace_bytes(num_rows, max_count) > 0 ? static_cast<float*>(scratch) : nullptr;
  const std::int64_t stride = detail::groups_of(max_count);
  if (maxima != nullptr) {
    // Two blocks a multiprocessor, and no more than have 16 scores a thread to read.
    const std::int64_t useful = (max_count + 16 * detail::max_threads - 1) / (16 * detail::max_threads);
    const std::int64_t per_row =
        std::max<std::int64_t>(std::min<std::int64_t>(useful, 4 * facts.sms / num_rows), 1);
    const dim3 grid(static_cast<unsigned>(per_row), static_cast<unsigned>(num_rows));
    code = cuda::detail::launch_overlapped(detail::group_max_kernel<Rows>, grid, detail::max_threads, 0,
                                           stream, facts.overlaps, 1, rows, maxima, stride);
    if (code != cudaSuccess) return code;
  }
  // As many blocks a row as can all run at once, two a multiprocessor, fewer of the larger clusters than it seems. Short
  // rows have nothing to gain by sharing a multiprocessor.
  const bool is_short = max_count > 0 && max_count <= detail::direct_elements;
  const int places = is_short ? facts.sms : 2 * facts.sms;
  const auto launch = !facts.overlaps          ? detail::launch_top_k<1, Rows>
                      : 9 * num_rows <= places ? detail::launch_top_k<8, Rows>
                      : 5 * num_rows <= places ? detail::launch_top_k<4, Rows>
                                               : detail::launch_top_k<2, Rows>;
  return launch(rows, num_rows, maxima, stride, stream);
}

/// Selects each row's scores above its threshold, as select_above() says.
/// \param num_rows  at least 1
template <class Rows>
cudaError_t launch_above(const Rows& rows, std::int32_t num_rows, cudaStream_t stream) noexcept {
  detail::device_facts facts;
  cudaError_t code = detail::look_at_device(&facts);
  if (code != cudaSuccess) return code;
  constexpr auto kernel = detail::above_kernel<Rows>;
  code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, detail::select_bytes);
  if (code != cudaSuccess) return code;
  return cuda::detail::launch_overlapped(kernel, dim3(static_cast<unsigned>(num_rows)),
                                         detail::select_threads, std::size_t{detail::select_bytes}, stream,
                                         facts.overlaps, 1, rows);
}

}  // namespace top_k
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
