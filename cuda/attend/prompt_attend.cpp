// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include <cmath>

#include "cuda/attend/prompt_kernel.hpp"
#include "cuda/core/error.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

status prompt_attend(const prompt_plan& plan, view<const prompt_row, 1> rows, std::int32_t layer,
                     const_tensor<3> q, tensor<3> out, const prompt_options& options,
                     stream_ref stream) noexcept {
  const prompt_shape& shape = plan.shape;
  const kv_geometry& g = shape.geometry;
  const auto refuse = [&](status code, const char* what, std::int64_t expected, std::int64_t actual) {
    return detail::refuse(code, what, expected, actual, options.error);
  };
  if (plan.ranges < 1 || plan.chunks_per_range < 1)
    return refuse(status::bad_argument, "plan", 1, plan.ranges);
  const std::int64_t items = rows.shape[0], tokens = q.shape[0];
  if (items < 0 || items > shape.max_items) return refuse(status::bad_shape, "rows", shape.max_items, items);
  if (layer < 0 || layer >= g.layers) return refuse(status::out_of_range, "layer", g.layers - 1, layer);
  if (tokens < 0 || tokens > shape.max_tokens)
    return refuse(status::bad_shape, "q rows", shape.max_tokens, tokens);
  if (q.shape[1] != shape.query_heads)
    return refuse(status::bad_shape, "q heads", shape.query_heads, q.shape[1]);
  if (q.shape[2] != g.key_dim) return refuse(status::bad_shape, "q key_dim", g.key_dim, q.shape[2]);
  if (out.shape[0] != tokens) return refuse(status::bad_shape, "out rows", tokens, out.shape[0]);
  if (out.shape[1] != shape.query_heads)
    return refuse(status::bad_shape, "out heads", shape.query_heads, out.shape[1]);
  if (out.shape[2] != g.value_dim)
    return refuse(status::bad_shape, "out value_dim", g.value_dim, out.shape[2]);
  if (q.type != g.type) return refuse(status::bad_dtype, "q", std::int64_t(g.type), std::int64_t(q.type));
  if (out.type != g.type && out.type != dtype::f32)
    return refuse(status::bad_dtype, "out", std::int64_t(g.type), std::int64_t(out.type));
  if (!(options.softmax_scale >= 0) || std::isinf(options.softmax_scale))
    return refuse(status::bad_argument, "softmax_scale", -1, -1);
  if (!(options.logit_soft_cap >= 0) || std::isinf(options.logit_soft_cap))
    return refuse(status::bad_argument, "logit_soft_cap", -1, -1);
  if (options.entries.data != nullptr)
    return refuse(status::unsupported, "entries: level 2 on the CUDA backend", -1, -1);
  if (options.sink_logits.data != nullptr && options.sink_logits.shape[0] != shape.query_heads)
    return refuse(status::bad_shape, "sink_logits", shape.query_heads, options.sink_logits.shape[0]);
  if (options.lse.data != nullptr &&
      (options.lse.shape[0] != tokens || options.lse.shape[1] != shape.query_heads))
    return refuse(status::bad_shape, "lse", tokens * shape.query_heads, options.lse.size());
  if (items == 0 || tokens == 0) return status::ok;
  if (rows.data == nullptr) return refuse(status::null_data, "rows", -1, -1);
  if (q.data == nullptr) return refuse(status::null_data, "q", -1, -1);
  if (out.data == nullptr) return refuse(status::null_data, "out", -1, -1);
  const std::int64_t vector =
      plan.tensor_cores ? 8 : 1;  // elements that the tensor-core kernel loads at once
  if (q.stride[2] != 1 || q.stride[1] % vector != 0 || q.stride[0] % vector != 0 ||
      reinterpret_cast<std::uintptr_t>(q.data) % (vector * 2) != 0)
    return refuse(status::bad_shape, "q strides or alignment", vector, -1);
  if (out.stride[2] != 1 || out.stride[1] != g.value_dim ||
      out.stride[0] != std::int64_t{shape.query_heads} * g.value_dim)
    return refuse(status::bad_shape, "out strides", g.value_dim, out.stride[1]);
  if (options.counters == nullptr) return refuse(status::null_data, "counters", -1, -1);
  if (plan.ranges > 1 || !options.first || !options.last) {
    const std::size_t bytes = prompt_state_bytes(plan);
    if (options.state.bytes < bytes)
      return refuse(status::workspace_small, "state", std::int64_t(bytes), std::int64_t(options.state.bytes));
    if (options.state.data == nullptr) return refuse(status::null_data, "state", -1, -1);
    if (reinterpret_cast<std::uintptr_t>(options.state.data) % 16 != 0)
      return refuse(status::bad_argument, "alignment of state", 16, -1);
  }
  if (plan.ranges > 1 &&
      attend::prompt_tiles(shape, plan.tensor_cores) + attend::prompt_first_counter > attend_counters)
    return refuse(status::bad_argument, "plan", attend_counters,
                  attend::prompt_tiles(shape, plan.tensor_cores));
  if (stream.is_host()) return refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1);

  const chunk_layout chunk(g);
  detail::prompt_arguments call;
  call.rows = rows.data;
  call.q = q.data;
  call.out = out.data;
  call.lse = options.lse.data;
  call.lse_row_stride = options.lse.stride[0];
  call.lse_head_stride = options.lse.stride[1];
  call.sinks = options.sink_logits.data;
  call.sink_stride = options.sink_logits.stride[0];
  call.row_stride = rows.stride[0];
  call.q_row_stride = q.stride[0];
  call.q_head_stride = q.stride[1];
  call.key_offset = std::int64_t(chunk.key_offset(layer, 0));
  call.value_offset = std::int64_t(chunk.value_offset(layer, 0));
  call.key_block_bytes = std::int64_t(chunk.key_block_bytes());
  call.value_block_bytes = std::int64_t(chunk.value_block_bytes());
  call.type = g.type;
  call.out_type = out.type;
  call.softmax_scale =
      options.softmax_scale > 0 ? options.softmax_scale : 1 / std::sqrt(static_cast<float>(g.key_dim));
  call.soft_cap = options.logit_soft_cap;
  call.work =
      attend::prompt_work_of(plan, items, options.first, options.last, options.state.data, options.counters);
  const cudaError_t code = !plan.tensor_cores      ? detail::launch_prompt_portable(call, stream.cuda())
                           : g.type == dtype::bf16 ? detail::launch_prompt_bf16(call, stream.cuda())
                                                   : detail::launch_prompt_f16(call, stream.cuda());
  return detail::check(code, "prompt_attend", options.error);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
