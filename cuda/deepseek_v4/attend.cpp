// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <flashmemory/cuda/deepseek_v4.hpp>
#include <flashmemory/error.hpp>
#include <limits>

#include "cuda/core/error.hpp"
#include "cuda/deepseek_v4/checks.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

using detail::refuse;

status to_device(const entry_source& source, std::int64_t rows, const char* name, device_pool& pool,
                 device_list& list, fault* error) noexcept {
  if (source.entries.data == nullptr) return status::ok;
  const std::int64_t capacity = source.entries.shape[1];
  if (source.entries.shape[0] < rows)
    return refuse(status::bad_shape, name, rows, source.entries.shape[0], error);
  if (capacity < 0 || capacity > (1 << 24)) return refuse(status::bad_shape, name, 1 << 24, capacity, error);
  if (source.entries.stride[1] != 1 && capacity > 1) {
    return refuse(status::bad_shape, name, 1, source.entries.stride[1], error);
  }
  if (source.counts.data != nullptr) {
    if (source.counts.shape[0] < rows)
      return refuse(status::bad_shape, name, rows, source.counts.shape[0], error);
    if (source.counts.stride[0] != 1 && rows > 1) {
      return refuse(status::bad_shape, name, 1, source.counts.stride[0], error);
    }
  }
  if (const status bad = deepseek_v4::to_device(source.pool, pool, error); bad != status::ok) return bad;
  list.entries = source.entries.data;
  list.counts = source.counts.data;
  list.stride = source.entries.stride[0];
  list.capacity = static_cast<std::int32_t>(capacity);
  return status::ok;
}

template <class Tensor>
bool contiguous(const Tensor& t) noexcept {
  return t.stride[2] == 1 && (t.stride[1] == t.shape[2] || t.shape[1] == 1) &&
         (t.stride[0] == t.shape[1] * t.shape[2] || t.shape[0] <= 1);
}

}  // namespace

attend_plan plan_attend(const attend_shape& shape, std::int32_t num_sms) {
  if (shape.rows < 0) throw argument_error(status::bad_argument, "attend_shape::rows is negative");
  if (shape.heads != 64 && shape.heads != 128)
    throw argument_error(status::bad_argument, "attend_shape::heads is neither 64 nor 128");
  if (shape.max_entries < 0)
    throw argument_error(status::bad_argument, "attend_shape::max_entries is negative");
  int device = 0, major = 0, minor = 0, sms = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (code != cudaSuccess) throw flashmemory::error(status::cuda_error, cudaGetErrorString(code));
  attend_plan plan;
  plan.shape = shape;
  plan.tensor_cores = major == 9 && minor == 0;
  if (plan.tensor_cores) {
    const int limit = num_sms > 0 ? std::min(num_sms, sms) : sms;
    int clusters[max_cluster + 1] = {};
    for (std::int32_t splits = 1; splits <= max_cluster; ++splits) {
      code = static_cast<cudaError_t>(resident_clusters(splits, &clusters[splits]));
      if (code != cudaSuccess) throw flashmemory::error(status::cuda_error, cudaGetErrorString(code));
      if (clusters[splits] > 0) clusters[splits] = std::min(clusters[splits], std::max(1, limit / splits));
    }
    plan.tensor_cores = clusters[1] > 0;
    const attend_cut cut = choose_cut(shape, clusters);
    plan.splits = cut.splits;
    plan.dim_splits = cut.dim_splits;
  }
  return plan;
}

std::size_t attend_workspace_bytes(const attend_plan& plan) noexcept {
  if (!plan.tensor_cores || plan.splits < 2 || plan.dim_splits < 2) return 0;
  return static_cast<std::size_t>(plan.shape.rows * (plan.shape.heads / 64) * plan.splits *
                                  (part_values_bytes + plan.dim_splits * part_stats_bytes));
}

status sparse_attend(const attend_plan& plan, const entry_source& window, const entry_source& selected,
                     const_tensor<3> q, tensor<3> out, const attend_options& options,
                     stream_ref stream) noexcept {
  fault* error = options.error;
  const std::int64_t rows = q.shape[0], heads = q.shape[1];
  if (rows < 0 || rows > plan.shape.rows)
    return refuse(status::bad_shape, "rows of q", plan.shape.rows, rows, error);
  if (heads != plan.shape.heads || (heads != 64 && heads != 128)) {
    return refuse(status::bad_shape, "heads of q", plan.shape.heads, heads, error);
  }
  if (q.shape[2] != entry_dim) return refuse(status::bad_shape, "dim of q", entry_dim, q.shape[2], error);
  for (int d = 0; d < 3; ++d) {
    if (out.shape[d] != q.shape[d]) return refuse(status::bad_shape, "out", q.shape[d], out.shape[d], error);
  }
  if (!contiguous(q)) return refuse(status::bad_shape, "strides of q", entry_dim, q.stride[1], error);
  if (!contiguous(out)) return refuse(status::bad_shape, "strides of out", entry_dim, out.stride[1], error);
  if (q.type != dtype::bf16) return refuse(status::bad_dtype, "q", -1, -1, error);
  if (out.type != dtype::bf16) return refuse(status::bad_dtype, "out", -1, -1, error);
  if (plan.splits < 1 || plan.splits > max_cluster)
    return refuse(status::bad_argument, "splits", max_cluster, plan.splits, error);
  if (plan.dim_splits != 1 && plan.dim_splits != 2 && plan.dim_splits != 4)
    return refuse(status::bad_argument, "dim_splits", 4, plan.dim_splits, error);
  const auto& sinks = options.sink_logits;
  const auto& lse = options.lse;
  if (sinks.data != nullptr && (sinks.shape[0] != heads || sinks.stride[0] != 1)) {
    return refuse(status::bad_shape, "sink_logits", heads, sinks.shape[0], error);
  }
  if (lse.data != nullptr && (lse.shape[0] != rows || lse.shape[1] != heads || lse.stride[1] != 1 ||
                              (lse.stride[0] != heads && rows > 1))) {
    return refuse(status::bad_shape, "lse", rows, lse.shape[0], error);
  }
  if (!std::isfinite(options.softmax_scale))
    return refuse(status::bad_argument, "softmax_scale", -1, -1, error);
  if (options.logit_soft_cap != 0)
    return refuse(status::unsupported, "logit_soft_cap with DeepSeek-V4's entries", 0, -1, error);
  if (options.entries.data != nullptr)
    return refuse(status::unsupported, "entries: lists are an entry_source here", -1, -1, error);
  if (options.scratch.bytes < attend_workspace_bytes(plan)) {
    return refuse(status::workspace_small, "scratch", static_cast<std::int64_t>(attend_workspace_bytes(plan)),
                  static_cast<std::int64_t>(options.scratch.bytes), error);
  }
  if (attend_workspace_bytes(plan) > 0) {
    if (options.scratch.data == nullptr) return refuse(status::null_data, "scratch", -1, -1, error);
    if (!aligned(options.scratch.data))
      return refuse(status::bad_argument, "alignment of scratch", 16, -1, error);
  }
  attend_params params;
  if (const status bad = to_device(window, rows, "window", params.window_pool, params.window, error);
      bad != status::ok) {
    return bad;
  }
  if (const status bad = to_device(selected, rows, "selected", params.selected_pool, params.selected, error);
      bad != status::ok) {
    return bad;
  }
  if (rows == 0) return status::ok;
  if (q.data == nullptr) return refuse(status::null_data, "q", -1, -1, error);
  if (out.data == nullptr) return refuse(status::null_data, "out", -1, -1, error);
  if (!aligned(q.data)) return refuse(status::bad_argument, "alignment of q", 16, -1, error);
  if (!aligned(out.data)) return refuse(status::bad_argument, "alignment of out", 16, -1, error);
  params.q = q.data;
  params.out = out.data;
  params.sinks = sinks.data;
  params.lse = lse.data;
  params.scratch = options.scratch.data;
  params.heads = static_cast<std::int32_t>(heads);
  const double scale = options.softmax_scale == 0 ? std::sqrt(1.0 / entry_dim) : options.softmax_scale;
  params.scale_log2 = static_cast<float>(scale * 1.4426950408889634);
  const int code = plan.tensor_cores
                       ? launch_attend_sm90(params, rows, {plan.splits, plan.dim_splits}, stream.cuda())
                       : launch_attend_any(params, rows, stream.cuda());
  if (code != cudaSuccess) cudaGetLastError();
  return detail::check(static_cast<cudaError_t>(code), "sparse_attend", error);
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
