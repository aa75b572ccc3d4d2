// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>
#include <flashmemory/error.hpp>
#include <flashmemory/store/geometry.hpp>
#include <limits>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

constexpr std::int64_t max_chunk_bytes = std::int64_t{1} << 31;

[[noreturn]] void refuse(const char* field, std::int64_t value, const char* rule) {
  throw argument_error(status::bad_argument, formatted("kv_geometry::{} is {}; {}", field, value, rule));
}

void require_positive(const char* field, std::int64_t value) {
  if (value < 1) refuse(field, value, "it must be at least 1");
}

void require_deepseek_v4(const kv_geometry& g) {
  const auto require = [](const char* field, std::int64_t value, std::int64_t wanted) {
    if (value != wanted)
      throw argument_error(
          status::bad_argument,
          formatted("kv_geometry::{} is {}; kv_format::deepseek_v4 has {}", field, value, wanted));
  };
  require("kv_heads", g.kv_heads, 1);
  require("key_dim", g.key_dim, deepseek_v4::entry_dim);
  require("value_dim", g.value_dim, deepseek_v4::lightning_dim);
  if (g.type != dtype::bf16)
    refuse("type", static_cast<std::int64_t>(g.type),
           "kv_format::deepseek_v4 takes bf16 and f32 and is stated as bf16");
  if ((g.entries_per_chunk & (g.entries_per_chunk - 1)) != 0)
    refuse("entries_per_chunk", g.entries_per_chunk, "kv_format::deepseek_v4 needs a power of two");
}

void require_index_keys(const index_key_geometry& keys) {
  if (keys.lanes < 0) refuse("index_keys.lanes", keys.lanes, "it must not be negative");
  require_positive("index_keys.dim", keys.dim);
  require_positive("index_keys.tokens_per_key", keys.tokens_per_key);
  if (keys.dim > 65536) refuse("index_keys.dim", keys.dim, "it must be at most 65536");
  switch (keys.type) {
    case index_key_type::e4m3:
    case index_key_type::bf16:
    case index_key_type::f16:
    case index_key_type::int8:
      break;
    case index_key_type::mxfp4:
      if (keys.dim % 32 != 0) refuse("index_keys.dim", keys.dim, "mxfp4 keys have a multiple of 32 values");
      break;
    default:
      refuse("index_keys.type", static_cast<std::int64_t>(keys.type), "it must be an index_key_type");
  }
  if (keys.layout != index_key_layout::interleaved && keys.layout != index_key_layout::planar)
    refuse("index_keys.layout", static_cast<std::int64_t>(keys.layout), "it must be interleaved or planar");
}

/// a * b, or one more than the limit when the product passes it; a and b are not negative.
std::int64_t bounded_product(std::int64_t a, std::int64_t b) {
  constexpr std::int64_t beyond = max_chunk_bytes + 1;
  if (a == 0 || b == 0) return 0;
  return a > max_chunk_bytes / b ? beyond : a * b;
}

}  // namespace

const char* to_string(index_key_type type) noexcept {
  switch (type) {
    case index_key_type::e4m3:
      return "e4m3";
    case index_key_type::bf16:
      return "bf16";
    case index_key_type::f16:
      return "f16";
    case index_key_type::int8:
      return "int8";
    case index_key_type::mxfp4:
      return "mxfp4";
  }
  return "unknown index_key_type";
}

void validate(const kv_geometry& g) {
  require_positive("layers", g.layers);
  require_positive("kv_heads", g.kv_heads);
  require_positive("key_dim", g.key_dim);
  require_positive("value_dim", g.value_dim);
  require_positive("entries_per_chunk", g.entries_per_chunk);
  require_positive("tokens_per_entry", g.tokens_per_entry);
  if (g.type != dtype::f32 && g.type != dtype::bf16 && g.type != dtype::f16)
    refuse("type", static_cast<std::int64_t>(g.type), "it must be f32, bf16 or f16");
  if (g.format != kv_format::separate && g.format != kv_format::deepseek_v4)
    refuse("format", static_cast<std::int64_t>(g.format), "it must be separate or deepseek_v4");
  if (g.format == kv_format::deepseek_v4) require_deepseek_v4(g);
  if (g.index_keys.lanes != 0) require_index_keys(g.index_keys);

  constexpr std::int64_t limit = max_chunk_bytes;
  const std::int64_t tokens = bounded_product(g.entries_per_chunk, g.tokens_per_entry);
  if (tokens > limit)
    throw argument_error(status::bad_argument,
                         formatted("kv_geometry::entries_per_chunk {} x tokens_per_entry {} is more than "
                                   "{} tokens a chunk",
                                   g.entries_per_chunk, g.tokens_per_entry, limit));
  if (g.index_keys.lanes > 0) {
    if (tokens % g.index_keys.tokens_per_key != 0)
      throw argument_error(
          status::bad_argument,
          formatted("kv_geometry::index_keys.tokens_per_key {} does not divide the {} tokens of a "
                    "chunk",
                    g.index_keys.tokens_per_key, tokens));
    if (bounded_product(tokens / g.index_keys.tokens_per_key, g.index_keys.bytes()) > limit)
      refuse("index_keys.dim", g.index_keys.dim, "the keys of one chunk pass 2^31 bytes");
  }

  // Every factor is checked before it is used, so chunk_layout cannot overflow once this has passed.
  const std::int64_t dims = std::int64_t{g.key_dim} + g.value_dim;
  std::int64_t bytes = bounded_product(dims, g.entries_per_chunk);
  bytes = bounded_product(bytes, static_cast<std::int64_t>(size_of(g.type)));
  bytes = bounded_product(bytes, g.kv_heads);
  if (g.format == kv_format::deepseek_v4)
    bytes = std::min(
        deepseek_v4::page_bytes(g.entries_per_chunk) + deepseek_v4::lightning_key_bytes * g.entries_per_chunk,
        limit + 1);
  bytes = bounded_product((bytes + 63) / 64 * 64, g.layers);
  if (bytes > limit)
    throw argument_error(
        status::bad_argument,
        formatted("kv_geometry: a chunk of {} layers x {} kv_heads x {} entries_per_chunk x (key_dim {} + "
                  "value_dim {}) x {} passes 2^31 bytes",
                  g.layers, g.kv_heads, g.entries_per_chunk, g.key_dim, g.value_dim, to_string(g.type)));
}

}  // namespace v0
}  // namespace flashmemory
