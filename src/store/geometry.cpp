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
  require("value_dim", g.value_dim, deepseek_v4::index_dim);
  if (g.type != dtype::bf16)
    refuse("type", static_cast<std::int64_t>(g.type),
           "kv_format::deepseek_v4 takes bf16 and f32 and is stated as bf16");
  if ((g.entries_per_chunk & (g.entries_per_chunk - 1)) != 0)
    refuse("entries_per_chunk", g.entries_per_chunk, "kv_format::deepseek_v4 needs a power of two");
}

/// a * b, or one more than the limit when the product passes it; a and b are not negative.
std::int64_t bounded_product(std::int64_t a, std::int64_t b) {
  constexpr std::int64_t beyond = max_chunk_bytes + 1;
  if (a == 0 || b == 0) return 0;
  return a > max_chunk_bytes / b ? beyond : a * b;
}

}  // namespace

void validate(const kv_geometry& g) {
  require_positive("layers", g.layers);
  require_positive("kv_heads", g.kv_heads);
  require_positive("key_dim", g.key_dim);
  require_positive("value_dim", g.value_dim);
  require_positive("entries_per_chunk", g.entries_per_chunk);
  require_positive("tokens_per_entry", g.tokens_per_entry);
  require_positive("tokens_per_key", g.tokens_per_key);
  if (g.type != dtype::f32 && g.type != dtype::bf16 && g.type != dtype::f16)
    refuse("type", static_cast<std::int64_t>(g.type), "it must be f32, bf16 or f16");
  if (g.keys != key_layout::interleaved && g.keys != key_layout::planar)
    refuse("keys", static_cast<std::int64_t>(g.keys), "it must be interleaved or planar");
  if (g.format != kv_format::separate && g.format != kv_format::deepseek_v4)
    refuse("format", static_cast<std::int64_t>(g.format), "it must be separate or deepseek_v4");
  if (g.format == kv_format::deepseek_v4) require_deepseek_v4(g);
  if (g.key_streams < 0) refuse("key_streams", g.key_streams, "it must not be negative");

  constexpr std::int64_t limit = max_chunk_bytes;
  const std::int64_t tokens = bounded_product(g.entries_per_chunk, g.tokens_per_entry);
  if (tokens > limit)
    throw argument_error(status::bad_argument,
                         formatted("kv_geometry::entries_per_chunk {} x tokens_per_entry {} is more than "
                                   "{} tokens a chunk",
                                   g.entries_per_chunk, g.tokens_per_entry, limit));
  if (g.key_streams > 0) {
    if (tokens % g.tokens_per_key != 0)
      throw argument_error(status::bad_argument,
                           formatted("kv_geometry::tokens_per_key {} does not divide the {} tokens of a "
                                     "chunk",
                                     g.tokens_per_key, tokens));
    if (g.key_bytes < 5) refuse("key_bytes", g.key_bytes, "a key is at least one e4m3 byte and an f32 scale");
    if (bounded_product(tokens / g.tokens_per_key, g.key_bytes) > limit)
      refuse("key_bytes", g.key_bytes, "the keys of one chunk pass 2^31 bytes");
  }

  // Every factor is checked before it is used, so chunk_layout cannot overflow once this has passed.
  const std::int64_t dims = std::int64_t{g.key_dim} + g.value_dim;
  std::int64_t bytes = bounded_product(dims, g.entries_per_chunk);
  bytes = bounded_product(bytes, static_cast<std::int64_t>(size_of(g.type)));
  bytes = bounded_product(bytes, g.kv_heads);
  if (g.format == kv_format::deepseek_v4)
    bytes = std::min(
        deepseek_v4::page_bytes(g.entries_per_chunk) + deepseek_v4::index_key_bytes * g.entries_per_chunk,
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
