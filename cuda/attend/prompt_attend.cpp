// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

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
  if (const status code = detail::check_extents(g, shape.query_heads, tokens, q, out, options);
      code != status::ok)
    return code;
  if (items == 0 || tokens == 0) return status::ok;
  if (const status code =
          detail::check_memory(g, shape.query_heads, plan.tensor_cores, rows.data, q, out, options.error);
      code != status::ok)
    return code;
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

  detail::prompt_arguments call;
  static_cast<detail::tensor_arguments&>(call) = detail::arguments_of(g, layer, q, out, options);
  call.rows = rows.data;
  call.row_stride = rows.stride[0];
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
