// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

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
  if (const status code = detail::check_extents(g, shape.query_heads, tokens, q, out, options);
      code != status::ok)
    return code;
  if (num_rows == 0) return status::ok;
  if (const status code =
          detail::check_memory(g, shape.query_heads, plan.tensor_cores, rows.data, q, out, options.error);
      code != status::ok)
    return code;
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

  detail::attend_arguments call;
  static_cast<detail::tensor_arguments&>(call) = detail::arguments_of(g, layer, q, out, options);
  call.rows = rows.data;
  call.row_stride = rows.stride[0];
  call.work = attend::work_of(cut, num_rows, options.scratch.data, options.counters);
  const cudaError_t code = plan.tensor_cores ? detail::launch_tensor_core(call, stream.cuda())
                                             : detail::launch_portable(call, stream.cuda());
  return detail::check(code, "sparse_attend", options.error);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
