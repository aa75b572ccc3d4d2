// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/cuda/score.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What a scoring kernel gets besides the jobs.
struct score_arguments {
  const score_job* jobs = nullptr;
  std::int32_t num_jobs = 0;
  std::int32_t heads = 0;
  std::int32_t page_keys = 64;
  bool interleaved = false;
  bool above = false;
  unsigned long long* counters = nullptr;
  std::uint8_t* masks = nullptr;  // [mask_tiles, 8]
  std::int32_t mask_tiles = 0;
};

cudaError_t launch_clear_chunks(const score_arguments& arguments, int blocks, cudaStream_t stream) noexcept;

/// Whether the build has the kernels of launch_score_hopper().
bool has_score_hopper() noexcept;
cudaError_t launch_score_hopper(const score_arguments& arguments, int blocks, cudaStream_t stream) noexcept;
cudaError_t launch_score_portable(const score_arguments& arguments, int blocks, cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
