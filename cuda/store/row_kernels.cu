// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>

#include "cuda/deepseek_v4/append_rows.hpp"
#include "cuda/store/row_kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr int threads = 256;

struct row_table {
  row_target targets[max_row_targets];
};

/// K or V of an append: where it comes from, and where each head's block lies in a piece.
struct side {
  const std::byte* data;
  std::int64_t row_stride, head_stride;  ///< elements
  std::int64_t block_bytes;              ///< of one head
  std::int32_t dim;
};

/// The same bits as core/convert.hpp on the host, NaNs included.
__device__ __forceinline__ std::uint16_t narrow_bf16(float value) {
  const std::uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ std::uint16_t narrow_f16(float value) {
  const std::uint32_t bits = __float_as_uint(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    const float rounded = __fadd_rn(__uint_as_float(magnitude), 0.5f);
    return static_cast<std::uint16_t>(sign | (__float_as_uint(rounded) - 0x3f000000u));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

struct copy_element {
  template <class T>
  __device__ static T convert(T value) {
    return value;
  }
};
struct to_bf16 {
  __device__ static std::uint16_t convert(float value) { return narrow_bf16(value); }
};
struct to_f16 {
  __device__ static std::uint16_t convert(float value) { return narrow_f16(value); }
};

/// Elements of type From become elements of type To; with uint4 for both, 16 bytes at a time.
template <class From, class To, class Convert>
__device__ __forceinline__ void write_side(const row_target& target, const side& s, std::byte* blocks,
                                           int heads, int elements_per_unit) {
  const std::int64_t dim = s.dim / elements_per_unit;
  const std::int64_t total = std::int64_t{target.count} * heads * dim;
  for (std::int64_t i = std::int64_t{blockIdx.y} * threads + threadIdx.x; i < total;
       i += std::int64_t{gridDim.y} * threads) {
    const std::int64_t d = i % dim, rest = i / dim, head = rest % heads, entry = rest / heads;
    const auto* from = reinterpret_cast<const From*>(s.data) +
                       ((target.first_row + entry) * s.row_stride + head * s.head_stride) / elements_per_unit;
    auto* to = reinterpret_cast<To*>(blocks + head * s.block_bytes) + (target.first_entry + entry) * dim;
    to[d] = Convert::convert(from[d]);
  }
}

template <class From, class To, class Convert>
__global__ void __launch_bounds__(threads)
    rows_kernel(const __grid_constant__ row_table table, side k, side v, int heads, int elements_per_unit) {
  const row_target& target = table.targets[blockIdx.x];
  if (k.data) write_side<From, To, Convert>(target, k, target.piece, heads, elements_per_unit);
  if (v.data)
    write_side<From, To, Convert>(target, v, target.piece + heads * k.block_bytes, heads, elements_per_unit);
}

bool in_units_of_16(const side& s, std::int64_t size) noexcept {
  return reinterpret_cast<std::uintptr_t>(s.data) % 16 == 0 && s.row_stride * size % 16 == 0 &&
         s.head_stride * size % 16 == 0 && s.dim * size % 16 == 0 && s.block_bytes % 16 == 0;
}

/// One block per page that gets keys.
__global__ void __launch_bounds__(threads)
    keys_kernel(std::byte* pages, const std::byte* rows, std::int64_t row_stride, std::int64_t first_key,
                std::int64_t count, std::int64_t page_keys, std::int32_t codes, std::int32_t scale_bytes,
                bool planar) {
  const std::int64_t page = first_key / page_keys + blockIdx.x;
  const std::int64_t page_first = page * page_keys;
  const bool fresh = page_first >= first_key;
  const std::int32_t key_bytes = codes + scale_bytes;
  std::byte* const out = pages + page * page_keys * key_bytes;
  for (std::int64_t b = threadIdx.x; b < page_keys * key_bytes; b += threads) {
    std::int64_t key = b / key_bytes, within = b % key_bytes;
    if (planar && b < page_keys * codes) {
      key = b / codes;
      within = b % codes;
    } else if (planar) {
      key = (b - page_keys * codes) / scale_bytes;
      within = codes + (b - page_keys * codes) % scale_bytes;
    }
    const std::int64_t row = page_first + key - first_key;
    if (row >= 0 && row < count)
      out[b] = rows[row * row_stride + within];
    else if (fresh)
      out[b] = std::byte{0};
  }
}

}  // namespace

cudaError_t launch_rows(const kv_geometry& g, const row_target* targets, int count, const const_tensor<3>& k,
                        const const_tensor<3>& v, cudaStream_t stream) noexcept {
  if (count < 1) return cudaSuccess;
  if (g.format == kv_format::deepseek_v4)
    return deepseek_v4::launch_entry_rows(g, targets, count, k, v, stream);
  const chunk_layout layout(g);
  const auto make_side = [](const const_tensor<3>& t, std::size_t block, std::int32_t dim) {
    return side{static_cast<const std::byte*>(t.data), t.stride[0], t.stride[1],
                static_cast<std::int64_t>(block), dim};
  };
  if (k.type != v.type) {  // each of a type of its own: one launch for each
    const_tensor<3> none_k = k, none_v = v;
    none_k.type = v.type;
    none_v.type = k.type;
    none_k.data = none_v.data = nullptr;
    const cudaError_t code = launch_rows(g, targets, count, k, none_v, stream);
    return code != cudaSuccess ? code : launch_rows(g, targets, count, none_k, v, stream);
  }
  const side ks = make_side(k, layout.key_block_bytes(), g.key_dim);
  const side vs = make_side(v, layout.value_block_bytes(), g.value_dim);
  row_table table;
  std::copy(targets, targets + count, table.targets);
  std::int32_t most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, targets[i].count);

  const auto launch = [&](auto kernel, int elements_per_unit) {
    const std::int64_t units =
        std::int64_t{most} * g.kv_heads * std::max(g.key_dim, g.value_dim) / elements_per_unit;
    const std::int64_t across = std::clamp<std::int64_t>((units + threads - 1) / threads, 1, 64);
    kernel<<<dim3(static_cast<unsigned>(count), static_cast<unsigned>(across)), threads, 0, stream>>>(
        table, ks, vs, g.kv_heads, elements_per_unit);
    return cudaGetLastError();
  };
  const auto size = static_cast<std::int64_t>(size_of(g.type));
  if (k.type == g.type) {
    if (in_units_of_16(ks, size) && in_units_of_16(vs, size) && layout.layer_bytes() % 16 == 0)
      return launch(rows_kernel<uint4, uint4, copy_element>, static_cast<int>(16 / size));
    return size == 4 ? launch(rows_kernel<std::uint32_t, std::uint32_t, copy_element>, 1)
                     : launch(rows_kernel<std::uint16_t, std::uint16_t, copy_element>, 1);
  }
  return g.type == dtype::bf16 ? launch(rows_kernel<float, std::uint16_t, to_bf16>, 1)
                               : launch(rows_kernel<float, std::uint16_t, to_f16>, 1);
}

cudaError_t launch_keys(const kv_geometry& g, std::byte* pages, std::int64_t first_key,
                        const view<const std::byte, 2>& keys, cudaStream_t stream) noexcept {
  const std::int64_t count = keys.shape[0], each = g.index_keys_per_chunk();
  if (count < 1) return cudaSuccess;
  const std::int64_t touched = (first_key + count - 1) / each - first_key / each + 1;
  keys_kernel<<<static_cast<unsigned>(touched), threads, 0, stream>>>(
      pages, keys.data, keys.stride[0], first_key, count, each, g.index_keys.value_bytes(),
      g.index_keys.scale_bytes(), g.index_keys.layout == index_key_layout::planar);
  return cudaGetLastError();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
