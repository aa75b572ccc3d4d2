// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>
#include <flashmemory/attend/deepseek_v4.hpp>
#include <flashmemory/indexer/index_key.hpp>

#include "src/attend/deepseek_v4.hpp"
#include "src/core/convert.hpp"

namespace flashmemory {
inline namespace v0 {
namespace deepseek_v4 {
namespace {

constexpr std::uint32_t infinity_bits = 0x7f800000u;

/// ceil(log2(amax / 448)) + 127 for a normal amax: 448 is 1.75 * 2^8.
std::uint32_t scale_byte(std::uint32_t amax_bits) noexcept {
  return (amax_bits >> 23) - 8 + ((amax_bits & 0x7fffffu) > 0x600000u ? 1 : 0);
}

float scale_value(std::uint32_t byte) noexcept {
  // 2^-127 is subnormal and 255 is NaN; the others are their own exponent.
  return detail::float_of(byte == 0 ? 0x00400000u : byte == 255 ? 0x7fc00000u : byte << 23);
}

}  // namespace

void quantise_entry(const float* values, std::byte* row, std::byte* scales) noexcept {
  for (int g = 0; g < scale_groups; ++g) {
    const float* group = values + g * group_dim;
    std::uint32_t amax = detail::bits_of(1e-4f);
    for (int i = 0; i < group_dim; ++i) amax = std::max(amax, detail::bits_of(group[i]) & 0x7fffffffu);
    if (amax >= infinity_bits) {
      scales[g] = std::byte{255};
      std::memset(row + g * group_dim, 0x7f, group_dim);
      continue;
    }
    const std::uint32_t byte = scale_byte(amax);
    const float inverse = scale_value(254 - byte);
    scales[g] = static_cast<std::byte>(byte);
    for (int i = 0; i < group_dim; ++i) {
      row[g * group_dim + i] = static_cast<std::byte>(to_e4m3(group[i] * inverse));
    }
  }
  scales[scale_groups] = std::byte{0};
  for (int i = 0; i < rope_dim; ++i) {
    const bfloat16 value = detail::convert<bfloat16>(values[nope_dim + i]);
    std::memcpy(row + nope_dim + i * sizeof value, &value, sizeof value);
  }
}

void dequantise_entry(const std::byte* row, const std::byte* scales, float* values) noexcept {
  for (int g = 0; g < scale_groups; ++g) {
    const float scale = scale_value(static_cast<std::uint32_t>(scales[g]));
    for (int i = g * group_dim; i < (g + 1) * group_dim; ++i) {
      values[i] = from_e4m3(static_cast<std::uint8_t>(row[i])) * scale;
    }
  }
  for (int i = 0; i < rope_dim; ++i) {
    bfloat16 value;
    std::memcpy(&value, row + nope_dim + i * sizeof value, sizeof value);
    values[nope_dim + i] = detail::to_float(value);
  }
}

status check_pool(const page_pool& pool, fault* error) noexcept {
  const std::int32_t n = pool.entries_per_page;
  if (n < 1 || (n & (n - 1)) != 0) return refuse(status::bad_argument, "entries_per_page", 64, n, error);
  if (pool.num_pages < 0) return refuse(status::bad_argument, "num_pages", 0, pool.num_pages, error);
  if (pool.table != nullptr) {
    return pool.table_offset < 0 ? refuse(status::bad_argument, "table_offset", 0, pool.table_offset, error)
                                 : status::ok;
  }
  if (pool.page_stride < page_bytes(n)) {
    return refuse(status::bad_argument, "page_stride", page_bytes(n), pool.page_stride, error);
  }
  if (pool.num_pages > 0 && pool.pages == nullptr) return refuse(status::null_data, "pages", -1, -1, error);
  return status::ok;
}

status append_entries(const page_pool& pool, const_tensor<2> values, view<const std::int32_t, 1> locations,
                      fault* error) noexcept {
  const std::int64_t rows = values.shape[0];
  if (rows < 0) return refuse(status::bad_shape, "rows", 0, rows, error);
  if (values.shape[1] != entry_dim) {
    return refuse(status::bad_shape, "values of an entry", entry_dim, values.shape[1], error);
  }
  if (values.stride[1] != 1) return refuse(status::bad_shape, "stride of values", 1, values.stride[1], error);
  if (locations.shape[0] != rows)
    return refuse(status::bad_shape, "locations", rows, locations.shape[0], error);
  if (values.type != dtype::f32 && values.type != dtype::bf16) {
    return refuse(status::bad_dtype, "values", -1, -1, error);
  }
  if (const status bad = check_pool(pool, error); bad != status::ok) return bad;
  if (pool.table != nullptr) return refuse(status::bad_argument, "table: a store's pages", -1, -1, error);
  if (rows == 0) return status::ok;
  if (values.data == nullptr) return refuse(status::null_data, "values", -1, -1, error);
  if (locations.data == nullptr) return refuse(status::null_data, "locations", -1, -1, error);
  const std::int64_t capacity = pool.num_pages * pool.entries_per_page;
  for (std::int64_t r = 0; r < rows; ++r) {
    if (locations(r) < -1 || locations(r) >= capacity) {
      return refuse(status::out_of_range, "location", capacity, locations(r), error);
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    if (locations(r) < 0) continue;
    float row[entry_dim];
    for (int i = 0; i < entry_dim; ++i) {
      row[i] = detail::load_float(values.data, values.type, r * values.stride[0] + i);
    }
    const place at = find(pool, locations(r));
    quantise_entry(row, at.row, at.scales);
  }
  return status::ok;
}

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
