// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/prompt_call.cuh>

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
  prompt_chunk_call<T> call;
  call.q = static_cast<const T*>(in.q);
  call.q_row_stride = in.q_row_stride;
  call.q_head_stride = in.q_head_stride;
  call.entries.rows = in.rows;
  call.entries.row_stride = in.row_stride;
  call.entries.key_offset = in.key_offset;
  call.entries.value_offset = in.value_offset;
  call.entries.key_block_bytes = in.key_block_bytes;
  call.entries.value_block_bytes = in.value_block_bytes;
  call.logits = attend::capped_logits::of(in.softmax_scale, in.soft_cap);
  call.logits.sinks = in.sinks;
  call.logits.sink_stride = in.sink_stride;
  call.output.out = in.out;
  call.output.type = in.out_type;
  call.output.query_heads = in.work.query_heads;
  call.output.value_dim = in.work.value_dim;
  call.output.lse = in.lse;
  call.output.lse_row_stride = in.lse_row_stride;
  call.output.lse_head_stride = in.lse_head_stride;
  call.work = in.work;
  return call;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
