// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <flashmemory/error.hpp>
#include <limits>

#include "cuda/attend/kernel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

namespace detail {

bool has_tensor_core_kernel(const kv_geometry& g) noexcept {
  return g.type != dtype::f32 && g.key_dim == g.value_dim &&
         (g.key_dim == 64 || g.key_dim == 128 || g.key_dim == 256);
}

attend::plan plan_of(const attend_plan& plan) noexcept {
  const kv_geometry& g = plan.shape.geometry;
  attend::plan p;
  p.shape.rows = plan.shape.rows;
  p.shape.max_pages = plan.shape.max_chunks;
  p.shape.entries_per_page = g.entries_per_chunk;
  p.shape.query_tokens = plan.shape.query_tokens;
  p.shape.query_heads = plan.shape.query_heads;
  p.shape.kv_heads = g.kv_heads;
  p.shape.key_dim = g.key_dim;
  p.shape.value_dim = g.value_dim;
  p.tensor_cores = plan.tensor_cores;
  p.num_sms = plan.num_sms;
  p.pages_per_split = plan.chunks_per_split;
  p.splits = plan.splits;
  p.head_tiles = plan.head_tiles;
  return p;
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
  require(g.key_dim <= attend::max_dim, "geometry.key_dim", "at most 256", g.key_dim);
  require(g.value_dim <= attend::max_dim, "geometry.value_dim", "at most 256", g.value_dim);
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
  plan.head_tiles = (query_rows + attend::tile_rows - 1) / attend::tile_rows;
  require(std::int64_t{g.kv_heads} * plan.head_tiles * shape.rows * attend::max_splits <
              std::numeric_limits<std::int32_t>::max(),
          "rows", "less", shape.rows);
  const attend::plan cut = attend::plan_for(detail::plan_of(plan).shape, num_sms, plan.tensor_cores);
  plan.chunks_per_split = cut.pages_per_split;
  plan.splits = cut.splits;
  return plan;
}

std::size_t attend_workspace_bytes(const attend_plan& plan) noexcept {
  return attend::layout_of(detail::plan_of(plan)).bytes;
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
