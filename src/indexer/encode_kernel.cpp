// SPDX-License-Identifier: MIT
#include <algorithm>
#include <type_traits>

#include "src/indexer/kernels.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/indexer/encode_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "src/indexer/block_dot-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

static_assert(panel_width % column_block == 0 && index_key_dim % panel_width == 0, "");

void MultiplyRows(const float* matrix, const float* x, std::int64_t rows, std::int64_t columns, float* out) {
  const float_tag d;
  constexpr auto lanes = static_cast<std::int64_t>(float_lanes);
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = matrix + r * columns;
    auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
    std::int64_t i = 0;
    for (; i + 4 * lanes <= columns; i += 4 * lanes) {
      s0 = hn::MulAdd(hn::LoadU(d, row + i), hn::LoadU(d, x + i), s0);
      s1 = hn::MulAdd(hn::LoadU(d, row + i + lanes), hn::LoadU(d, x + i + lanes), s1);
      s2 = hn::MulAdd(hn::LoadU(d, row + i + 2 * lanes), hn::LoadU(d, x + i + 2 * lanes), s2);
      s3 = hn::MulAdd(hn::LoadU(d, row + i + 3 * lanes), hn::LoadU(d, x + i + 3 * lanes), s3);
    }
    for (; i + lanes <= columns; i += lanes) {
      s0 = hn::MulAdd(hn::LoadU(d, row + i), hn::LoadU(d, x + i), s0);
    }
    float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
    for (; i < columns; ++i) sum += row[i] * x[i];
    out[r] = sum;
  }
}

// dst[0..n) = mean of `window` rows, added up in order and then divided.
HWY_INLINE void mean_rows(const float* rows, std::int64_t row_stride, std::int32_t window, std::int64_t n,
                          float* dst) {
  const float_tag d;
  constexpr auto lanes = static_cast<std::int64_t>(float_lanes);
  const float divisor = static_cast<float>(window);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    auto sum = hn::LoadU(d, rows + i);
    for (std::int32_t w = 1; w < window; ++w) sum = hn::Add(sum, hn::LoadU(d, rows + w * row_stride + i));
    hn::StoreU(hn::Div(sum, hn::Set(d, divisor)), d, dst + i);
  }
  for (; i < n; ++i) {
    float sum = rows[i];
    for (std::int32_t w = 1; w < window; ++w) sum += rows[w * row_stride + i];
    dst[i] = sum / divisor;
  }
}

void ProjectKeys(const float* rows, std::int64_t row_stride, std::int32_t stride, std::int32_t window,
                 std::int32_t count, std::int64_t hidden, const float* panels, float* out) {
  constexpr std::int64_t slice = 256;  // of the hidden size: pooled slices of all keys stay in L1
  HWY_ALIGN float pooled[project_block * slice];
  HWY_ALIGN float sums[project_block * index_key_dim];
  std::fill_n(sums, count * index_key_dim, 0.0f);
  for (std::int64_t from = 0; from < hidden; from += slice) {
    const std::int64_t depth = std::min(slice, hidden - from);
    for (std::int32_t i = 0; i < count; ++i) {
      mean_rows(rows + std::int64_t{i} * stride * row_stride + from, row_stride, window, depth,
                pooled + i * slice);
    }
    for (std::int32_t column = 0; column < index_key_dim; column += static_cast<std::int32_t>(column_block)) {
      const float* panel =
          panels + (column / panel_width * hidden + from) * panel_width + column % panel_width;
      for_row_blocks(count, [&](std::int32_t key, auto block) {
        constexpr int n = decltype(block)::value;
        block_dot<n, true>(pooled + key * slice, slice, panel, panel_width, depth,
                           sums + key * index_key_dim + column, index_key_dim);
      });
    }
  }
  std::copy_n(sums, count * index_key_dim, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashmemory {
inline namespace v0 {
namespace detail {

HWY_EXPORT(MultiplyRows);
HWY_EXPORT(ProjectKeys);

void multiply_rows(const float* matrix, const float* x, std::int64_t rows, std::int64_t columns,
                   float* out) noexcept {
  HWY_DYNAMIC_DISPATCH(MultiplyRows)(matrix, x, rows, columns, out);
}

void pack_panels(const float* weights, std::int64_t hidden, float* panels) noexcept {
  for (std::int32_t row = 0; row < index_key_dim; ++row) {
    float* panel = panels + row / panel_width * hidden * panel_width + row % panel_width;
    for (std::int64_t i = 0; i < hidden; ++i) panel[i * panel_width] = weights[row * hidden + i];
  }
}

void project_keys(const float* rows, std::int64_t row_stride, std::int32_t stride, std::int32_t window,
                  std::int32_t count, std::int64_t hidden, const float* panels, float* out) noexcept {
  HWY_DYNAMIC_DISPATCH(ProjectKeys)(rows, row_stride, stride, window, count, hidden, panels, out);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
#endif
