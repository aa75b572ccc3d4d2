// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/call.cuh>

#include "cuda/attend/filled.cuh"
#include "cuda/attend/kernel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The policies of the library's own instances: chunk tables, elements as stored, scale, soft cap and sinks.
template <class T>
using chunk_call = attend::call<T, attend::chunk_entries, attend::plain<T>, attend::plain<T>,
                                attend::capped_logits, attend::dense_output>;

template <class T>
chunk_call<T> call_of(const attend_arguments& in) noexcept {
  return filled<chunk_call<T>>(in);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
