// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/pooled_keys.hpp>
#include <limits>
#include <set>
#include <utility>

#include "src/core/format.hpp"
#include "src/indexer/pooled_keys_impl.hpp"
#include "src/indexer/pooled_keys_kernel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

[[noreturn]] void refuse(status code, const std::string& what) {
  throw argument_error(code, "pooled_keys_indexer: " + what);
}

void check_projection(const pooled_keys_config& c, std::size_t lane, const char* name,
                      const std::vector<float>& matrix) {
  if (matrix.empty()) return;
  const std::int64_t wanted = std::int64_t{c.dim} * c.key_dim;
  if (static_cast<std::int64_t>(matrix.size()) != wanted)
    refuse(status::bad_shape, formatted("{} of lane {} has {} values, expected {} x {}", name, lane,
                                        matrix.size(), c.dim, c.key_dim));
  for (std::size_t i = 0; i < matrix.size(); ++i)
    if (!std::isfinite(matrix[i]))
      refuse(status::not_finite, formatted("{} of lane {} has {} at element {}", name, lane, matrix[i], i));
}

void check_lane(const pooled_keys_config& c, std::size_t at) {
  const pooled_keys_lane& lane = c.lanes[at];
  if (lane.layer < 0) refuse(status::bad_argument, formatted("lane {} looks at layer {}", at, lane.layer));
  if (lane.kv_head < 0 || lane.kv_head >= c.kv_heads)
    refuse(status::bad_argument,
           formatted("lane {} looks at KV head {} of {}", at, lane.kv_head, c.kv_heads));
  const std::int32_t group = c.query_heads / c.kv_heads;
  std::set<std::int32_t> seen;
  for (const std::int32_t head : lane.query_heads)
    if (head < lane.kv_head * group || head >= (lane.kv_head + 1) * group || !seen.insert(head).second)
      refuse(status::bad_argument, formatted("lane {}: query head {} is not one of [{}, {}), or stands twice",
                                             at, head, lane.kv_head * group, (lane.kv_head + 1) * group));
  check_projection(c, at, "key_projection", lane.key_projection);
  check_projection(c, at, "query_projection", lane.query_projection);
  if (lane.key_projection.empty() && !lane.query_projection.empty())
    refuse(status::bad_argument, formatted("lane {} has a query_projection and no key_projection", at));
  if (lane.key_projection.empty() && c.dim != c.key_dim)
    refuse(status::bad_argument,
           formatted("lane {} has no projection from key_dim {} to dim {}", at, c.key_dim, c.dim));
}

}  // namespace

namespace detail {

pooled_keys_config checked(pooled_keys_config c) {
  const auto need = [](bool good, const char* field, const auto& value, const char* wanted) {
    if (!good) refuse(status::bad_argument, formatted("{} is {}, expected {}", field, value, wanted));
  };
  if (c.dim == 0) c.dim = c.key_dim;
  need(c.kv_heads >= 1 && c.kv_heads <= 65536, "kv_heads", c.kv_heads, "1 to 65536");
  need(c.query_heads >= 1 && c.query_heads <= 65536 && c.query_heads % c.kv_heads == 0, "query_heads",
       c.query_heads, "a multiple of kv_heads, at most 65536");
  need(c.key_dim >= 1 && c.key_dim <= max_pooled_dim, "key_dim", c.key_dim, "1 to 1024");
  need(c.dim >= 1 && c.dim <= max_pooled_dim, "dim", c.dim, "1 to 1024");
  need(c.tokens_per_key >= 1 && c.tokens_per_key <= 1 << 20, "tokens_per_key", c.tokens_per_key, "1 to 2^20");
  need(c.query_tokens >= 1 && c.query_tokens <= max_query_tap_tokens, "query_tokens", c.query_tokens,
       "1 to 64");
  need(std::isfinite(c.softmax_scale) && c.softmax_scale >= 0, "softmax_scale", c.softmax_scale,
       "a number >= 0");
  need(c.uncounted_sink_chunks >= 0, "uncounted_sink_chunks", c.uncounted_sink_chunks, "0 or more");
  need(c.uncounted_recent_chunks >= 0, "uncounted_recent_chunks", c.uncounted_recent_chunks, "0 or more");
  need(c.type >= index_key_type::e4m3 && c.type <= index_key_type::mxfp4, "type", static_cast<int>(c.type),
       "an index_key_type");
  if (c.type == index_key_type::mxfp4) need(c.dim % 32 == 0, "dim", c.dim, "a multiple of 32 for mxfp4");
  need(!c.lanes.empty() && c.lanes.size() <= 65536, "number of lanes", c.lanes.size(), "1 to 65536");
  for (std::size_t i = 0; i < c.lanes.size(); ++i) check_lane(c, i);
  if (c.softmax_scale == 0) c.softmax_scale = 1 / std::sqrt(static_cast<float>(c.key_dim));
  return c;
}

}  // namespace detail

pooled_keys_config pooled_keys_of(const kv_geometry& geometry, std::int32_t query_heads,
                                  const std::vector<std::int32_t>& layers) {
  pooled_keys_config config;
  config.query_heads = query_heads;
  config.kv_heads = geometry.kv_heads;
  config.key_dim = geometry.key_dim;
  for (const std::int32_t layer : layers)
    for (std::int32_t head = 0; head < geometry.kv_heads; ++head) {
      pooled_keys_lane lane;
      lane.layer = layer;
      lane.kv_head = head;
      config.lanes.push_back(std::move(lane));
    }
  return config;
}

}  // namespace v0
}  // namespace flashmemory
