// SPDX-License-Identifier: MIT
// The calls of a step that are kernel launches and nothing else.
#include "cuda/core/error.hpp"
#include "cuda/deepseek_v4/append_to.hpp"
#include "cuda/step/decode_step_impl.hpp"
#include "cuda/step/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

namespace {

status check_rows(const char* name, const const_tensor<3>& rows, std::int64_t count, std::int64_t heads,
                  std::int64_t dim, dtype stored, fault* error) noexcept {
  if (rows.type != dtype::f32 && rows.type != stored)
    return detail::refuse(status::bad_dtype, name, static_cast<std::int64_t>(stored),
                          static_cast<std::int64_t>(rows.type), error);
  if (rows.shape[0] != count) return detail::refuse(status::bad_shape, name, count, rows.shape[0], error);
  if (rows.shape[1] != heads) return detail::refuse(status::bad_shape, name, heads, rows.shape[1], error);
  if (rows.shape[2] != dim) return detail::refuse(status::bad_shape, name, dim, rows.shape[2], error);
  if (rows.stride[2] != 1 && dim > 1)
    return detail::refuse(status::bad_shape, name, 1, rows.stride[2], error);
  if (rows.data == nullptr) return detail::refuse(status::null_data, name, -1, -1, error);
  return status::ok;
}

}  // namespace

status decode_step::impl::check_layer(std::int32_t layer, stream_ref stream) noexcept {
  if (stream.is_host())
    return detail::refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, &last_fault);
  if (layer >= 0 && layer < geometry.layers) return status::ok;
  const status code = detail::refuse(status::out_of_range, "layer", geometry.layers, layer, &last_fault);
  last_fault.layer = layer;
  return code;
}

status decode_step::append(std::int32_t layer, const_tensor<3> k, const_tensor<3> v,
                           stream_ref stream) noexcept {
  impl& im = *impl_;
  const impl::noted told(im);
  const kv_geometry& g = im.geometry;
  const detail::device_guard guard(im.device.ordinal);
  if (const status code = im.check_layer(layer, stream); code != status::ok) return code;
  const std::int64_t count = std::int64_t{im.options.rows} * im.entries_per_row;
  if (const status code = check_rows("k", k, count, g.kv_heads, g.key_dim, g.type, &im.last_fault);
      code != status::ok)
    return code;
  if (const status code = check_rows("v", v, count, g.kv_heads, g.value_dim, g.type, &im.last_fault);
      code != status::ok)
    return code;
  if (g.format == kv_format::deepseek_v4)
    return deepseek_v4::launch_append_to(im.device_targets(), count, g, layer, k, v, stream, &im.last_fault);
  const auto source = [](const const_tensor<3>& rows, std::int32_t dim, std::size_t offset,
                         std::size_t head_bytes) {
    detail::row_source s;
    s.data = rows.data;
    s.type = rows.type;
    s.row_stride = rows.stride[0];
    s.head_stride = rows.stride[1];
    s.dim = dim;
    s.offset = static_cast<std::int64_t>(offset);
    s.head_bytes = static_cast<std::int64_t>(head_bytes);
    return s;
  };
  return detail::check(
      detail::launch_append(
          im.device_targets(), count, g.kv_heads,
          source(k, g.key_dim, im.layout.key_offset(layer, 0), im.layout.key_block_bytes()),
          source(v, g.value_dim, im.layout.value_offset(layer, 0), im.layout.value_block_bytes()), g.type,
          stream.cuda()),
      "append", &im.last_fault);
}

status decode_step::append_index_keys(std::int32_t lane, view<const std::byte, 2> keys,
                                      stream_ref stream) noexcept {
  impl& im = *impl_;
  const impl::noted told(im);
  const kv_geometry& g = im.geometry;
  const auto no = [&](status code, const char* what, std::int64_t expected, std::int64_t actual) {
    const status refused = detail::refuse(code, what, expected, actual, &im.last_fault);
    im.last_fault.lane = lane;
    return refused;
  };
  const detail::device_guard guard(im.device.ordinal);
  if (const status code = im.check_layer(0, stream); code != status::ok) return code;
  if (im.level1 != nullptr && im.level1->encodes_keys())
    return no(status::unsupported, "index keys: the selector's key encoder makes them", -1, -1);
  if (g.index_keys.lanes == 0) return no(status::unsupported, "index keys: the store has no lanes", -1, -1);
  if (lane < 0 || lane >= g.index_keys.lanes)
    return no(status::out_of_range, "lane", g.index_keys.lanes, lane);
  const std::int64_t count = std::int64_t{im.options.rows} * im.index_keys_per_row;
  if (keys.shape[0] != count) return no(status::bad_shape, "keys", count, keys.shape[0]);
  if (keys.shape[1] != g.index_keys.bytes())
    return no(status::bad_shape, "key bytes", g.index_keys.bytes(), keys.shape[1]);
  if (keys.stride[1] != 1 || keys.stride[0] != g.index_keys.bytes())
    return no(status::bad_shape, "key strides", g.index_keys.bytes(), keys.stride[0]);
  if (keys.data == nullptr) return no(status::null_data, "keys", -1, -1);
  const status code = detail::check(
      detail::launch_append_keys(im.device_key_targets(lane), im.options.rows, im.index_keys_per_row,
                                 keys.data, detail::key_page_of(g), im.nan_counter(), stream.cuda()),
      "append_index_keys", &im.last_fault);
  if (code == status::ok) im.keys_given[static_cast<std::size_t>(lane)] = 1;
  return code;
}

status decode_step::impl::observe(std::int32_t layer, tap_kind kind, const char* name, const_tensor<3> in,
                                  stream_ref stream) noexcept {
  const noted told(*this);
  const detail::device_guard guard(device.ordinal);
  if (const status code = check_layer(layer, stream); code != status::ok) return code;
  if (level1 == nullptr) return status::ok;
  const std::int64_t width = level1->width_of(layer, kind);
  if (width < 0) return status::ok;
  const std::int64_t count = std::int64_t{options.rows} * options.tokens;
  const auto no = [&](status code, std::int64_t expected, std::int64_t actual) {
    const status refused = detail::refuse(code, name, expected, actual, &last_fault);
    last_fault.layer = layer;
    return refused;
  };
  if (in.type != dtype::f32 && in.type != dtype::bf16 && in.type != dtype::f16)
    return no(status::bad_dtype, -1, static_cast<std::int64_t>(in.type));
  if (in.shape[0] != count) return no(status::bad_shape, count, in.shape[0]);
  if (in.shape[1] * in.shape[2] != width) return no(status::bad_shape, width, in.shape[1] * in.shape[2]);
  if (kind == tap_kind::keys && in.shape[1] != geometry.kv_heads)
    return no(status::bad_shape, geometry.kv_heads, in.shape[1]);
  if (in.data == nullptr) return no(status::null_data, -1, -1);
  detail::step_rows rows;
  rows.places = device_places();
  rows.positions = device_positions();
  rows.rows = options.rows;
  rows.tokens = options.tokens;
  rows.keys = device_key_targets(0);
  rows.index_keys_per_row = index_keys_per_row;
  const status code = level1->observe_step(rows, layer, kind, in, stream, &last_fault);
  if (code == status::ok)
    observed[static_cast<std::size_t>(static_cast<std::int32_t>(kind) * geometry.layers + layer)] = 1;
  return code;
}

status decode_step::observe(std::int32_t layer, const_tensor<2> hidden, stream_ref stream) noexcept {
  return impl_->observe(layer, tap_kind::hidden, "hidden", flashmemory::detail::one_head(hidden), stream);
}

status decode_step::observe_queries(std::int32_t layer, const_tensor<2> queries, stream_ref stream) noexcept {
  return impl_->observe(layer, tap_kind::queries, "queries", flashmemory::detail::one_head(queries), stream);
}

status decode_step::observe_keys(std::int32_t layer, const_tensor<3> k, stream_ref stream) noexcept {
  return impl_->observe(layer, tap_kind::keys, "keys", k, stream);
}

status decode_step::attend(std::int32_t layer, const_tensor<3> q, tensor<3> out,
                           const attend_options& options, stream_ref stream) noexcept {
  impl& im = *impl_;
  const impl::noted told(im);
  const detail::device_guard guard(im.device.ordinal);
  if (im.options.query_heads == 0)
    return detail::refuse(status::unsupported, "query_heads is 0", -1, -1, &im.last_fault);
  attend_options mine = options;
  if (mine.scratch.data == nullptr) mine.scratch = {im.scratch.as<void>(), im.scratch.bytes()};
  if (mine.counters == nullptr) mine.counters = im.counters.as<std::uint32_t>();
  fault why;
  mine.error = &why;
  const status code = sparse_attend(im.plan, im.tables->rows(), layer, q, out, mine, stream);
  if (code == status::ok) return code;
  im.last_fault = why;
  if (options.error != nullptr) *options.error = why;
  return code;
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
