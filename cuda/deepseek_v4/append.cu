// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "cuda/core/error.hpp"
#include "cuda/deepseek_v4/checks.hpp"
#include "cuda/deepseek_v4/pool.cuh"
#include "cuda/deepseek_v4/quantise.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

constexpr int warps = 4;

/// A warp per row. Reads 1 or 2 KB and writes 584 bytes per row.
template <class T>
__global__ void __launch_bounds__(32 * warps)
    append_kernel(device_pool pool, const T* values, std::int64_t stride, const std::int32_t* locations,
                  std::int64_t rows) {
  const std::int64_t row = std::int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= rows) return;
  const device_place place = find(pool, __ldg(locations + row));
  if (place.row == nullptr) return;
  const int lane = threadIdx.x % 32;
  float x[16];
  load16(values + row * stride + lane * 16, x);

  write_entry(x, place.row, place.scales);
}

}  // namespace

status append_entries(const page_pool& pool, const_tensor<2> values, view<const std::int32_t, 1> locations,
                      stream_ref stream, fault* error) noexcept {
  using detail::refuse;
  const std::int64_t rows = values.shape[0];
  if (rows < 0 || rows > (std::int64_t{1} << 31)) return refuse(status::bad_shape, "rows", 0, rows, error);
  if (values.shape[1] != entry_dim) {
    return refuse(status::bad_shape, "values of an entry", entry_dim, values.shape[1], error);
  }
  if (values.type != dtype::f32 && values.type != dtype::bf16) {
    return refuse(status::bad_dtype, "values", -1, -1, error);
  }
  const std::int64_t units = 16 / static_cast<std::int64_t>(size_of(values.type));
  if (values.stride[1] != 1) return refuse(status::bad_shape, "stride of values", 1, values.stride[1], error);
  if (values.stride[0] % units != 0) {
    return refuse(status::bad_shape, "row stride of values", units, values.stride[0], error);
  }
  if (locations.shape[0] != rows)
    return refuse(status::bad_shape, "locations", rows, locations.shape[0], error);
  if (locations.stride[0] != 1 && rows > 1) {
    return refuse(status::bad_shape, "stride of locations", 1, locations.stride[0], error);
  }
  device_pool target;
  if (const status bad = to_device(pool, target, error); bad != status::ok) return bad;
  if (rows == 0) return status::ok;
  if (values.data == nullptr) return refuse(status::null_data, "values", -1, -1, error);
  if (!aligned(values.data)) return refuse(status::bad_argument, "alignment of values", 16, -1, error);
  if (locations.data == nullptr) return refuse(status::null_data, "locations", -1, -1, error);
  const auto blocks = static_cast<unsigned>((rows + warps - 1) / warps);
  const auto queue = static_cast<cudaStream_t>(stream.cuda());
  if (values.type == dtype::f32) {
    append_kernel<<<blocks, 32 * warps, 0, queue>>>(target, static_cast<const float*>(values.data),
                                                    values.stride[0], locations.data, rows);
  } else {
    append_kernel<<<blocks, 32 * warps, 0, queue>>>(target, static_cast<const __nv_bfloat16*>(values.data),
                                                    values.stride[0], locations.data, rows);
  }
  return detail::check_launch("append_entries", error);
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
