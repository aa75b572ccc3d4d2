// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <flashmemory/error.hpp>
#include <limits>

#include "cuda/attend/heuristics.hpp"
#include "cuda/attend/kernel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

namespace detail {

bool has_tensor_core_kernel(const kv_geometry& g) noexcept {
  return g.type != dtype::f32 && g.key_dim == g.value_dim &&
         (g.key_dim == 64 || g.key_dim == 128 || g.key_dim == 256);
}

std::int32_t chunks_per_split(std::int64_t tiles, std::int64_t max_chunks, std::int32_t entries_per_chunk,
                              std::int32_t num_sms, std::int32_t blocks_per_sm) noexcept {
  if (max_chunks <= 1 || tiles < 1 || tiles > attend_counters)
    return static_cast<std::int32_t>(std::max<std::int64_t>(max_chunks, 1));
  std::int64_t best = max_chunks;
  double best_cost = std::numeric_limits<double>::max();
  for (std::int64_t splits = 1; splits <= std::min<std::int64_t>(max_chunks, max_splits); ++splits) {
    const std::int64_t chunks = (max_chunks + splits - 1) / splits;
    const std::int64_t blocks = tiles * ((max_chunks + chunks - 1) / chunks);
    const std::int64_t per_sm = (blocks + num_sms - 1) / num_sms;
    // In entries that a multiprocessor reads of its share of the memory's bandwidth: what is read, where a tensor-core
    // block that has a multiprocessor to itself takes more than that share if others leave it some; an item's start
    // and end, of which blocks side by side hide each other's; the join of the splits.
    const double share = double(tiles * max_chunks) / num_sms, most = double(per_sm * chunks);
    const double read = entries_per_chunk * (per_sm == 1 && blocks_per_sm == 2 ? std::max(0.84 * most, share)
                                             : per_sm < blocks_per_sm          ? 1.07 * most
                                                                               : most);
    const double join = splits == 1 ? 0.0 : splits <= max_cluster ? 64.0 : 256.0;
    const double ends = join * double(std::max<std::int64_t>(per_sm, blocks_per_sm)) / blocks_per_sm;
    const double cost = read + ends + 2.0 * double(splits);
    if (cost < best_cost) {
      best = chunks;
      best_cost = cost;
    }
  }
  return static_cast<std::int32_t>(best);
}

partial_layout layout_of(const attend_plan& plan) noexcept {
  const auto& s = plan.shape;
  partial_layout layout;
  layout.rows_per_tile = plan.tensor_cores ? tile_rows : 1;
  layout.splits = plan.splits;
  layout.tiles = plan.tensor_cores ? s.rows * s.geometry.kv_heads * plan.head_tiles
                                   : s.rows * s.query_tokens * s.query_heads;
  // A multiple of four, and so are the maxima and sums together: values are read four at a time.
  const std::int64_t head = (2 * std::int64_t{layout.rows_per_tile} + 3) / 4 * 4;
  layout.head_floats = static_cast<std::int32_t>(head);
  layout.floats_per_split = (head + std::int64_t{layout.rows_per_tile} * s.geometry.value_dim + 3) / 4 * 4;
  if (layout.splits > (plan.tensor_cores ? max_cluster : 1))
    layout.bytes = static_cast<std::size_t>(layout.tiles * layout.splits * layout.floats_per_split * 4);
  return layout;
}

}  // namespace detail

attend_plan plan_attend(const attend_shape& shape, std::int32_t num_sms) {
  validate(shape.geometry);
  const auto require = [](bool holds, const char* field, const char* wanted, std::int64_t found) {
    if (!holds)
      throw argument_error(status::bad_argument,
                           fmt::format("attend_shape::{} must be {}, it is {}", field, wanted, found));
  };
  const auto& g = shape.geometry;
  require(g.format == kv_format::separate, "geometry.format", "separate",
          static_cast<std::int64_t>(g.format));
  require(g.key_dim <= 256, "geometry.key_dim", "at most 256", g.key_dim);
  require(g.value_dim <= 256, "geometry.value_dim", "at most 256", g.value_dim);
  require(shape.query_heads >= 1 && shape.query_heads % g.kv_heads == 0 && shape.query_heads <= 65535,
          "query_heads", "a positive multiple of kv_heads", shape.query_heads);
  require(shape.query_tokens >= 1 && shape.query_tokens <= 8, "query_tokens", "between 1 and 8",
          shape.query_tokens);
  require(shape.query_tokens == 1 || g.tokens_per_entry == 1, "query_tokens",
          "1 where an entry holds several tokens", shape.query_tokens);
  require(shape.rows >= 1 && shape.rows * shape.query_tokens <= 65535, "rows",
          "between 1 and 65535 / query_tokens", shape.rows);
  require(shape.max_chunks >= 1 && shape.max_chunks <= std::numeric_limits<std::int32_t>::max(), "max_chunks",
          "positive", shape.max_chunks);
  require(shape.max_chunks * g.entries_per_chunk <= std::numeric_limits<std::int32_t>::max(), "max_chunks",
          "fewer than 2^31 entries", shape.max_chunks);
  require(num_sms >= 0, "num_sms", "0 or the multiprocessors to fill", num_sms);
  int device = 0, major = 0;
  const auto ask = [](cudaError_t code) {
    if (code != cudaSuccess)
      throw error(status::cuda_error, fmt::format("plan_attend: {}", cudaGetErrorString(code)));
  };
  ask(cudaGetDevice(&device));
  ask(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  if (num_sms == 0) ask(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));

  attend_plan plan;
  plan.shape = shape;
  plan.num_sms = num_sms;
  plan.tensor_cores = major >= 9 && detail::has_tensor_core_kernel(g);
  const std::int32_t query_rows = shape.query_heads / g.kv_heads * shape.query_tokens;
  plan.head_tiles = (query_rows + detail::tile_rows - 1) / detail::tile_rows;
  require(std::int64_t{g.kv_heads} * plan.head_tiles * shape.rows * detail::max_splits <
              std::numeric_limits<std::int32_t>::max(),
          "rows", "less", shape.rows);
  const std::int32_t blocks_per_sm = plan.tensor_cores ? (g.key_dim == 256 ? 1 : 2) : 8;
  const auto layout = detail::layout_of(plan);
  plan.chunks_per_split =
      detail::chunks_per_split(layout.tiles, shape.max_chunks, g.entries_per_chunk, num_sms, blocks_per_sm);
  plan.splits =
      static_cast<std::int32_t>((shape.max_chunks + plan.chunks_per_split - 1) / plan.chunks_per_split);
  return plan;
}

std::size_t attend_workspace_bytes(const attend_plan& plan) noexcept { return detail::layout_of(plan).bytes; }

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
