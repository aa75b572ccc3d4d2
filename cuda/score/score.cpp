// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>
#include <flashmemory/cuda/score.hpp>
#include <limits>

#include "cuda/core/error.hpp"
#include "cuda/score/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace {

constexpr std::int32_t portable_blocks_per_sm = 4;

std::size_t mask_bytes(std::int64_t keys) noexcept {
  return keys > 0 ? (static_cast<std::size_t>(keys) + 63) / 64 * 8 : 0;
}

bool aligned(const void* pointer, std::size_t to) noexcept {
  return reinterpret_cast<std::uintptr_t>(pointer) % to == 0;
}

}  // namespace

std::size_t score_workspace_bytes(const score_options& options, std::int64_t max_keys) noexcept {
  return options.above ? mask_bytes(max_keys) : 0;
}

status score(const score_options& options, const score_job* jobs, std::int32_t num_jobs, workspace scratch,
             stream_ref stream, fault* error) noexcept {
  using detail::refuse;
  if (options.heads < 1 || options.heads > max_score_heads) {
    return refuse(status::bad_argument, "heads", max_score_heads, options.heads, error);
  }
  if (options.keys_per_page < 1)
    return refuse(status::bad_argument, "keys_per_page", 1, options.keys_per_page, error);
  if (options.layout != index_key_layout::planar && options.layout != index_key_layout::interleaved) {
    return refuse(status::bad_argument, "layout", -1, static_cast<std::int64_t>(options.layout), error);
  }
  if (num_jobs < 0) return refuse(status::bad_argument, "num_jobs", 0, num_jobs, error);
  if (options.num_sms < 0) return refuse(status::bad_argument, "num_sms", 0, options.num_sms, error);
  if (stream.is_host()) return refuse(status::unsupported, "stream", -1, -1, error);
  if (num_jobs == 0) return status::ok;
  if (jobs == nullptr) return refuse(status::null_data, "jobs", -1, -1, error);
  if (options.above) {
    if (options.counters == nullptr) return refuse(status::null_data, "counters", -1, -1, error);
    if (scratch.bytes < 8)
      return refuse(status::workspace_small, "scratch", 8, static_cast<std::int64_t>(scratch.bytes), error);
    if (scratch.data == nullptr) return refuse(status::null_data, "scratch", -1, -1, error);
    if (!aligned(scratch.data, 8)) return refuse(status::bad_argument, "scratch", 8, -1, error);
  }

  int device = 0, sms = 0, major = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (code != cudaSuccess) return detail::check(code, "device", error);
  if (options.num_sms > 0) sms = std::min(sms, options.num_sms);

  detail::score_arguments arguments;
  arguments.jobs = jobs;
  arguments.num_jobs = num_jobs;
  arguments.heads = options.heads;
  arguments.page_keys = options.keys_per_page;
  arguments.interleaved = options.layout == index_key_layout::interleaved;
  arguments.above = options.above;
  if (options.above) {
    arguments.counters = reinterpret_cast<unsigned long long*>(options.counters);
    arguments.masks = static_cast<std::uint8_t*>(scratch.data);
    arguments.mask_tiles = static_cast<std::int32_t>(std::min<std::size_t>(
        scratch.bytes / 8, static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())));
  }
  if (options.chunk_max) {
    const status s =
        detail::check(detail::launch_clear_chunks(arguments, sms, stream.cuda()), "clear_chunks", error);
    if (s != status::ok) return s;
  }
  const bool fast = major == 9 && !arguments.interleaved && options.keys_per_page % score_group == 0 &&
                    detail::has_score_hopper();
  const std::int64_t most_blocks = score_counters - 1;
  const int blocks = static_cast<int>(
      std::min<std::int64_t>(fast ? sms : std::int64_t{sms} * portable_blocks_per_sm, most_blocks));
  code = fast ? detail::launch_score_hopper(arguments, blocks, stream.cuda())
              : detail::launch_score_portable(arguments, blocks, stream.cuda());
  return detail::check(code, "score", error);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
