// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <flashmemory/attend/options.hpp>
#include <flashmemory/store/geometry.hpp>

#include "cuda/core/error.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What calls of attention over chunks hand to the library's instances of the kernels, whatever their rows are. Strides
/// count elements.
struct tensor_arguments {
  const void* q = nullptr;
  void* out = nullptr;
  float* lse = nullptr;          ///< or null
  const float* sinks = nullptr;  ///< or null
  std::int64_t q_row_stride = 0, q_head_stride = 0;
  std::int64_t lse_row_stride = 0, lse_head_stride = 0, sink_stride = 0;
  std::int64_t key_offset = 0, value_offset = 0;            ///< bytes, of head 0 of the layer in a chunk
  std::int64_t key_block_bytes = 0, value_block_bytes = 0;  ///< of one head
  dtype type = dtype::f32, out_type = dtype::f32;
  float softmax_scale = 1;
  float soft_cap = 0;  ///< or 0
};

/// The tensors and options of a call of `tokens` query tokens that do not depend on there being any.
inline status check_extents(const kv_geometry& g, std::int32_t query_heads, std::int64_t tokens,
                            const const_tensor<3>& q, const tensor<3>& out,
                            const attend_options& options) noexcept {
  const auto refuse = [&](status code, const char* what, std::int64_t expected, std::int64_t actual) {
    return detail::refuse(code, what, expected, actual, options.error);
  };
  if (q.shape[1] != query_heads) return refuse(status::bad_shape, "q heads", query_heads, q.shape[1]);
  if (q.shape[2] != g.key_dim) return refuse(status::bad_shape, "q key_dim", g.key_dim, q.shape[2]);
  if (out.shape[0] != tokens) return refuse(status::bad_shape, "out rows", tokens, out.shape[0]);
  if (out.shape[1] != query_heads) return refuse(status::bad_shape, "out heads", query_heads, out.shape[1]);
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
  if (options.sink_logits.data != nullptr && options.sink_logits.shape[0] != query_heads)
    return refuse(status::bad_shape, "sink_logits", query_heads, options.sink_logits.shape[0]);
  if (options.lse.data != nullptr && (options.lse.shape[0] != tokens || options.lse.shape[1] != query_heads))
    return refuse(status::bad_shape, "lse", tokens * query_heads, options.lse.size());
  return status::ok;
}

/// Pointers and strides, of a call that has tokens.
/// \param rows  what the call's rows are, in device memory
inline status check_memory(const kv_geometry& g, std::int32_t query_heads, bool tensor_cores,
                           const void* rows, const const_tensor<3>& q, const tensor<3>& out,
                           fault* error) noexcept {
  const auto refuse = [&](status code, const char* what, std::int64_t expected, std::int64_t actual) {
    return detail::refuse(code, what, expected, actual, error);
  };
  if (rows == nullptr) return refuse(status::null_data, "rows", -1, -1);
  if (q.data == nullptr) return refuse(status::null_data, "q", -1, -1);
  if (out.data == nullptr) return refuse(status::null_data, "out", -1, -1);
  const std::int64_t vector = tensor_cores ? 8 : 1;  // elements that the tensor-core kernel loads at once
  if (q.stride[2] != 1 || q.stride[1] % vector != 0 || q.stride[0] % vector != 0 ||
      reinterpret_cast<std::uintptr_t>(q.data) % (vector * 2) != 0)
    return refuse(status::bad_shape, "q strides or alignment", vector, -1);
  if (out.stride[2] != 1 || out.stride[1] != g.value_dim ||
      out.stride[0] != std::int64_t{query_heads} * g.value_dim)
    return refuse(status::bad_shape, "out strides", g.value_dim, out.stride[1]);
  return status::ok;
}

/// The arguments of a call whose tensors have been checked.
inline tensor_arguments arguments_of(const kv_geometry& g, std::int32_t layer, const const_tensor<3>& q,
                                     const tensor<3>& out, const attend_options& options) noexcept {
  const chunk_layout chunk(g);
  tensor_arguments call;
  call.q = q.data;
  call.out = out.data;
  call.lse = options.lse.data;
  call.lse_row_stride = options.lse.stride[0];
  call.lse_head_stride = options.lse.stride[1];
  call.sinks = options.sink_logits.data;
  call.sink_stride = options.sink_logits.stride[0];
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
  return call;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
