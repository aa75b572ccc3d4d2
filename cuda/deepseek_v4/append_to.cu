// SPDX-License-Identifier: MIT
#include "cuda/core/error.hpp"
#include "cuda/deepseek_v4/append_to.hpp"
#include "cuda/deepseek_v4/checks.hpp"
#include "cuda/deepseek_v4/quantise.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

constexpr int warps = 4;

/// One layer's piece of a chunk, as byte offsets from the slot.
struct piece_offsets {
  std::int64_t rows, scales, keys, key_scales;
};

__device__ __forceinline__ void load4(const float* from, float (&x)[4]) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(from));
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

__device__ __forceinline__ void load4(const __nv_bfloat16* from, float (&x)[4]) {
  const uint2 v = __ldg(reinterpret_cast<const uint2*>(from));
  x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
  x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
}

/// A warp per target. Reads 1,280 or 2,560 bytes and writes 716.
template <class T>
__global__ void __launch_bounds__(32 * warps)
    append_to_kernel(const append_target* targets, std::int64_t num_targets, piece_offsets at,
                     std::int32_t entries_per_chunk, const T* entries, std::int64_t entry_stride,
                     const T* index_keys, std::int64_t key_stride, std::int64_t rows) {
  const std::int64_t number = std::int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (number >= num_targets) return;
  const append_target to = targets[number];
  if (to.chunk == nullptr || to.row < 0 || to.row >= rows) return;
  if (to.entry < 0 || to.entry >= entries_per_chunk) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  float x[16], key[4];
  load16(entries + to.row * entry_stride + lane * 16, x);
  load4(index_keys + to.row * key_stride + lane * 4, key);
  write_entry(x, to.chunk + at.rows + to.entry * row_bytes,
              to.chunk + at.scales + to.entry * scale_row_bytes);
  write_index_key(key, to.chunk + at.keys + to.entry * std::int64_t{lightning_dim},
                  to.chunk + at.key_scales + to.entry * std::int64_t{sizeof(float)});
}

status check_rows(const const_tensor<3>& t, std::int64_t width, const char* name, fault* error) noexcept {
  using detail::refuse;
  if (t.shape[0] < 0) return refuse(status::bad_shape, name, 0, t.shape[0], error);
  if (t.shape[1] != 1) return refuse(status::bad_shape, name, 1, t.shape[1], error);
  if (t.shape[2] != width) return refuse(status::bad_shape, name, width, t.shape[2], error);
  if (t.stride[2] != 1) return refuse(status::bad_shape, name, 1, t.stride[2], error);
  if (t.type != dtype::f32 && t.type != dtype::bf16) return refuse(status::bad_dtype, name, -1, -1, error);
  const std::int64_t unit = 16 / static_cast<std::int64_t>(size_of(t.type));
  if (t.shape[0] > 1 && t.stride[0] % unit != 0)
    return refuse(status::bad_shape, name, unit, t.stride[0], error);
  if (t.shape[0] > 0 && t.data == nullptr) return refuse(status::null_data, name, -1, -1, error);
  if (!aligned(t.data)) return refuse(status::bad_argument, name, 16, -1, error);
  return status::ok;
}

}  // namespace

status launch_append_to(const append_target* targets, std::int64_t num_targets, const kv_geometry& geometry,
                        std::int32_t layer, const const_tensor<3>& entries, const const_tensor<3>& index_keys,
                        stream_ref stream, fault* error) noexcept {
  using detail::refuse;
  if (geometry.format != kv_format::deepseek_v4)
    return refuse(status::unsupported, "kv_format", -1, static_cast<std::int64_t>(geometry.format), error);
  if (layer < 0 || layer >= geometry.layers)
    return refuse(status::out_of_range, "layer", geometry.layers, layer, error);
  if (num_targets < 0 || num_targets > (std::int64_t{1} << 31))
    return refuse(status::bad_shape, "num_targets", 0, num_targets, error);
  if (const status bad = check_rows(entries, entry_dim, "entries", error); bad != status::ok) return bad;
  if (const status bad = check_rows(index_keys, lightning_dim, "index_keys", error); bad != status::ok)
    return bad;
  if (index_keys.shape[0] != entries.shape[0])
    return refuse(status::bad_shape, "rows of index_keys", entries.shape[0], index_keys.shape[0], error);
  if (index_keys.type != entries.type) return refuse(status::bad_dtype, "index_keys", -1, -1, error);
  if (num_targets == 0) return status::ok;
  if (targets == nullptr) return refuse(status::null_data, "targets", -1, -1, error);

  const chunk_layout layout(geometry);
  const std::int32_t each = geometry.entries_per_chunk;
  piece_offsets at;
  at.rows = static_cast<std::int64_t>(layout.key_offset(layer, 0));
  at.scales = at.rows + scales_offset(each);
  at.keys = static_cast<std::int64_t>(layout.value_offset(layer, 0));
  at.key_scales = at.keys + std::int64_t{lightning_dim} * each;
  const auto blocks = static_cast<unsigned>((num_targets + warps - 1) / warps);
  const auto launch = [&](const auto* typed) {
    using element = std::remove_pointer_t<decltype(typed)>;
    append_to_kernel<<<blocks, 32 * warps, 0, static_cast<cudaStream_t>(stream.cuda())>>>(
        targets, num_targets, at, each, typed, entries.stride[0], static_cast<element*>(index_keys.data),
        index_keys.stride[0], entries.shape[0]);
  };
  if (entries.type == dtype::f32) {
    launch(static_cast<const float*>(entries.data));
  } else {
    launch(static_cast<const __nv_bfloat16*>(entries.data));
  }
  return detail::check_launch("append_to", error);
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
