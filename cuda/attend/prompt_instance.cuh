// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/prompt_call.cuh>

#include "cuda/attend/filled.cuh"
#include "cuda/attend/prompt_kernel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The policies of the library's own instances: items of a store, scale, soft cap and sinks.
template <class T>
using prompt_chunk_call =
    attend::prompt_call<T, attend::prompt_chunks, attend::capped_logits, attend::dense_output>;

template <class T>
prompt_chunk_call<T> prompt_call_of(const prompt_arguments& in) noexcept {
  return filled<prompt_chunk_call<T>>(in);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
