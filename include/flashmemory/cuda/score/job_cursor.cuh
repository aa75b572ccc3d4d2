// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/core/ptx.cuh>
#include <flashmemory/cuda/score.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace scoring {
namespace detail {

/// Keys of one unit of work.
inline constexpr std::int32_t tile_keys = 64;

__device__ __forceinline__ std::int64_t count_of(const score_job& job) {
  return job.device_count != nullptr ? *job.device_count : job.count;
}

/// The tiles of all jobs one after another, split into as many even ranges as there are blocks. A warp walks
/// them: every lane holds the end of one of 32 consecutive jobs. All members are called by whole warps.
class job_cursor {
 public:
  std::int32_t job = 0;    ///< current one
  std::int32_t begin = 0;  ///< its first tile
  std::int32_t end = 0;    ///< tile behind its last

  __device__ job_cursor(const score_job* jobs, std::int32_t num_jobs)
      : jobs_(jobs), num_jobs_(num_jobs), lane_(static_cast<std::int32_t>(threadIdx.x % 32)) {
    fetch_probable_job();
    load();
    std::int32_t sum = 0;
    for (std::int32_t i = 32 + lane_; i < num_jobs; i += 32) sum += tiles_of(i);
    total_ = __shfl_sync(~0u, end_, 31) + static_cast<std::int32_t>(__reduce_add_sync(~0u, sum));
  }

  /// Of all jobs.
  __device__ std::int32_t total() const { return total_; }

  /// First tile of a block's range; the range of the last block ends at first_of(blocks, blocks).
  __device__ std::int32_t first_of(std::int32_t block, std::int32_t blocks) const {
    return static_cast<std::int32_t>(std::int64_t{total_} * block / blocks);
  }

  /// The block in whose range a tile is.
  __device__ std::int32_t block_of(std::int32_t tile, std::int32_t blocks) const {
    return static_cast<std::int32_t>(((tile + std::int64_t{1}) * blocks - 1) / total_);
  }

  /// Moves to the job of `tile`, which is not before the current one's.
  __device__ void seek(std::int32_t tile) {
    std::int32_t chunk_end = __shfl_sync(~0u, end_, 31);
    while (tile >= chunk_end) {
      first_job_ += 32;
      before_ = chunk_end;
      load();
      chunk_end = __shfl_sync(~0u, end_, 31);
    }
    const auto lane = static_cast<std::int32_t>(__ffs(static_cast<int>(__ballot_sync(~0u, end_ > tile)))) - 1;
    job = first_job_ + lane;
    end = __shfl_sync(~0u, end_, lane);
    const std::int32_t previous = __shfl_sync(~0u, end_, lane > 0 ? lane - 1 : 0);
    begin = lane > 0 ? previous : before_;
  }

 private:
  __device__ std::int32_t tiles_of(std::int32_t i) const {
    const std::int64_t count = i < num_jobs_ ? count_of(jobs_[i]) : 0;
    return count > 0 ? static_cast<std::int32_t>((count + tile_keys - 1) / tile_keys) : 0;
  }

  // Brings the job that it is if all are equally long into the L1 cache while their lengths are read.
  __device__ void fetch_probable_job() const {
    const auto probable = static_cast<std::int64_t>(blockIdx.x) * num_jobs_ / gridDim.x;
    constexpr int sectors = sizeof(score_job) / 32;
    const char* const at = reinterpret_cast<const char*>(jobs_ + probable) + lane_ * 32;
    if (lane_ < sectors) ptx::load_unused(at);
  }

  __device__ void load() {
    end_ = tiles_of(first_job_ + lane_);
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int32_t below = __shfl_up_sync(~0u, end_, distance);
      if (lane_ >= distance) end_ += below;
    }
    end_ += before_;
  }

  const score_job* jobs_;
  std::int32_t num_jobs_;
  std::int32_t lane_;
  std::int32_t first_job_ = 0;  // whose end lane 0 holds
  std::int32_t before_ = 0;     // tiles of the jobs before that one
  std::int32_t end_ = 0;        // of job first_job_ + lane
  std::int32_t total_ = 0;
};

}  // namespace detail
}  // namespace scoring
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
