// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/score/call.cuh>

#include "cuda/score/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The policies of the library's own instances: e4m3 keys, logits as they are.
inline scoring::call<> call_of(const score_arguments& in) noexcept {
  scoring::call<> call;
  call.jobs = in.jobs;
  call.num_jobs = in.num_jobs;
  call.heads = in.heads;
  call.page_keys = in.page_keys;
  call.above = in.above;
  call.counters = in.counters;
  call.masks = in.masks;
  call.mask_tiles = in.mask_tiles;
  call.keys.interleaved = in.interleaved;
  return call;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
