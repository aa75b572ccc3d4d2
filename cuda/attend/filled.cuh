// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/logits.cuh>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The kernels' call that `in`, checked arguments over rows of a store, asks for.
/// \tparam Call  attend::call or attend::prompt_call with the policies of the library's own instances
template <class Call, class Arguments>
Call filled(const Arguments& in) noexcept {
  Call call;
  call.q = static_cast<decltype(call.q)>(in.q);
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
