// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include <cmath>

#include "cuda/attend/kernel.hpp"
#include "cuda/core/error.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

status sparse_attend(const attend_plan& plan, view<const chunk_row, 1> rows, std::int32_t layer,
                     const_tensor<3> q, tensor<3> out, const attend_options& options,
                     stream_ref stream) noexcept {
  const attend_shape& shape = plan.shape;
  const kv_geometry& g = shape.geometry;
  const auto refuse = [&](status code, const char* what, std::int64_t expected, std::int64_t actual) {
    return detail::refuse(code, what, expected, actual, options.error);
  };
  if (plan.splits < 1 || plan.chunks_per_split < 1)
    return refuse(status::bad_argument, "plan", 1, plan.splits);
  const std::int64_t num_rows = rows.shape[0], tokens = num_rows * shape.query_tokens;
  if (num_rows < 0 || num_rows > shape.rows) return refuse(status::bad_shape, "rows", shape.rows, num_rows);
  if (layer < 0 || layer >= g.layers) return refuse(status::out_of_range, "layer", g.layers - 1, layer);
  if (q.shape[0] != tokens) return refuse(status::bad_shape, "q rows", tokens, q.shape[0]);
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
  if (num_rows == 0) return status::ok;
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
  const attend::plan cut = detail::plan_of(plan);
  const attend::partial_layout layout = attend::layout_of(cut);
  if (options.scratch.bytes < layout.bytes)
    return refuse(status::workspace_small, "scratch", std::int64_t(layout.bytes),
                  std::int64_t(options.scratch.bytes));
  if (layout.bytes > 0) {
    if (options.scratch.data == nullptr) return refuse(status::null_data, "scratch", -1, -1);
    if (reinterpret_cast<std::uintptr_t>(options.scratch.data) % 16 != 0)
      return refuse(status::bad_argument, "alignment of scratch", 16, -1);
    if (options.counters == nullptr) return refuse(status::null_data, "counters", -1, -1);
    if (layout.tiles > attend_counters)
      return refuse(status::bad_argument, "plan", attend_counters, layout.tiles);
  }
  if (stream.is_host()) return refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1);

  const chunk_layout chunk(g);
  detail::attend_arguments call;
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
  call.work = attend::work_of(cut, num_rows, options.scratch.data, options.counters);
  const cudaError_t code = plan.tensor_cores ? detail::launch_tensor_core(call, stream.cuda())
                                             : detail::launch_portable(call, stream.cuda());
  return detail::check(code, "sparse_attend", options.error);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
