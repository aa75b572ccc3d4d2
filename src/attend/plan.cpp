// SPDX-License-Identifier: MIT
#include "src/attend/plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/store/fast_memory.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

constexpr std::size_t aligned(std::size_t bytes) noexcept {
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max() / 64 * 64;
  return bytes > most ? most : (bytes + 63) / 64 * 64;
}

bool known(dtype type) noexcept { return type == dtype::f32 || type == dtype::bf16 || type == dtype::f16; }

bool dim_supported(std::int32_t dim) noexcept {
  return dim > 0 && dim <= cpu::attend::max_dim && dim % 16 == 0;
}

/// Resident chunks of each split.
std::int64_t split_length(const kv_geometry& geometry, std::int64_t chunks) noexcept {
  return std::max({std::int64_t{1}, attend_split_entries / geometry.entries_per_chunk,
                   (chunks + attend_max_splits - 1) / attend_max_splits});
}

}  // namespace

attend_layout::attend_layout(const kv_geometry& geometry, std::int32_t query_heads, std::int64_t rows,
                             std::int64_t max_splits) noexcept {
  // What passes the largest size_t stays there, which no scratch has.
  const auto times = [](std::size_t a, std::size_t b) { return saturating_multiply(a, b); };
  const std::size_t partials =
      times(times(std::size_t(rows), std::size_t(query_heads)), std::size_t(max_splits));
  states = aligned(times(std::size_t(rows), sizeof(attend_unit)));
  sums = saturating_add(states, aligned(times(partials, sizeof(cpu::attend::softmax_state))));
  end = saturating_add(sums, aligned(times(partials, std::size_t(geometry.value_dim) * sizeof(float))));
  bytes = saturating_add(end, 63);
}

std::int64_t most_splits(const kv_geometry& geometry, std::int64_t chunks) noexcept {
  const std::int64_t least = split_length(geometry, 0);
  return std::clamp<std::int64_t>(chunks / least + (chunks % least != 0), 1, attend_max_splits);
}

status check_call(const chunk_reader& reader, std::int32_t layer, const const_tensor<3>& q,
                  const attend_options& options, attend_call& call) noexcept {
  const kv_geometry& g = reader.geometry();
  if (layer < 0 || layer >= g.layers) {
    fault f;
    f.code = status::out_of_range;
    f.what = "layer";
    f.layer = layer;
    f.expected = g.layers;
    return refuse(options, f);
  }
  if (g.format != kv_format::separate) {
    return refuse(options, status::unsupported, "kv_format: see deepseek_v4::sparse_attend()",
                  static_cast<std::int64_t>(kv_format::separate), static_cast<std::int64_t>(g.format));
  }
  if (!dim_supported(g.key_dim)) {
    return refuse(options, status::unsupported, "key_dim", cpu::attend::max_dim, g.key_dim);
  }
  if (!dim_supported(g.value_dim)) {
    return refuse(options, status::unsupported, "value_dim", cpu::attend::max_dim, g.value_dim);
  }
  if (!known(g.type)) return refuse(options, status::unsupported, "dtype of the store");
  if (q.type != dtype::f32 && q.type != g.type) return refuse(options, status::bad_dtype, "q");
  if (q.shape[1] <= 0 || q.shape[1] % g.kv_heads != 0) {
    return refuse(options, status::bad_shape, "query heads of q", g.kv_heads, q.shape[1]);
  }
  if (q.shape[2] != g.key_dim) {
    return refuse(options, status::bad_shape, "last extent of q", g.key_dim, q.shape[2]);
  }
  if (!std::isfinite(options.softmax_scale) || options.softmax_scale < 0) {
    return refuse(options, status::bad_argument, "softmax_scale");
  }
  if (!std::isfinite(options.logit_soft_cap) || options.logit_soft_cap < 0) {
    return refuse(options, status::bad_argument, "logit_soft_cap");
  }
  call.geometry = g;
  call.layer = layer;
  call.query_heads = static_cast<std::int32_t>(q.shape[1]);
  call.group = call.query_heads / g.kv_heads;
  call.q = q;
  call.scale =
      options.softmax_scale > 0 ? options.softmax_scale : 1.0f / std::sqrt(static_cast<float>(g.key_dim));
  call.soft_cap = options.logit_soft_cap;
  return status::ok;
}

status check_tokens(const batch_item& item, const attend_options& options) noexcept {
  if (item.num_tokens >= (item.empty() ? 0 : 1)) return status::ok;
  fault f;
  f.code = status::bad_argument;
  f.what = "num_tokens";
  f.sequence = item.sequence.index;
  f.expected = item.empty() ? 0 : 1;
  f.actual = item.num_tokens;
  return refuse(options, f);
}

status check_item(const chunk_reader& reader, const batch_item& item, std::int32_t layer,
                  const attend_options& options, attend_unit& unit) noexcept {
  fault f;
  f.sequence = item.sequence.index;
  f.layer = layer;
  if (item.position < 0) {
    f.code = status::bad_argument;
    f.what = "position";
    f.actual = item.position;
    return refuse(options, f);
  }
  resident_set set;
  f.code = reader.resident(item.sequence, layer, &set);
  if (f.code != status::ok) {
    f.what = "sequence";
    return refuse(options, f);
  }
  if (item.num_tokens > set.tokens || item.position > set.tokens - item.num_tokens) {
    f.code = status::out_of_order;
    f.what = "K and V up to the last query";
    f.expected =
        std::min(item.position, std::numeric_limits<std::int64_t>::max() - item.num_tokens) + item.num_tokens;
    f.actual = set.tokens;
    return refuse(options, f);
  }
  unit.chunks = set.chunks;
  unit.chunk_count = set.count;
  unit.position = item.position;
  unit.tokens = item.num_tokens;
  unit.split_length = split_length(reader.geometry(), set.count);
  unit.splits = std::max<std::int64_t>(1, (set.count + unit.split_length - 1) / unit.split_length);
  return status::ok;
}

status check_list(const attend_call& call, const attend_unit& unit, const batch_item& item,
                  const attend_options& options) noexcept {
  const std::int64_t per_chunk = call.geometry.entries_per_chunk;
  const std::int64_t visible = call.geometry.entries_for(unit.position + 1);
  for (std::int64_t i = 0; i < unit.list_count; ++i) {
    const std::int64_t entry = unit.list[i * unit.list_stride];
    if (entry == -1 || entry >= visible) continue;
    fault f;
    f.sequence = item.sequence.index;
    f.layer = call.layer;
    f.what = "entries";
    if (entry < 0) {
      f.code = status::out_of_range;
      f.actual = entry;
      return refuse(options, f);
    }
    const std::int64_t found = find_chunk(unit.chunks, unit.chunk_count, entry / per_chunk);
    if (found < 0 || entry % per_chunk >= unit.chunks[found].entries) {
      f.code = status::not_resident;
      f.chunk = entry / per_chunk;
      f.actual = entry;
      return refuse(options, f);
    }
  }
  return status::ok;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
