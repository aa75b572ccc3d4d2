// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <flashmemory/store/deepseek_v4.hpp>

namespace flashmemory {
inline namespace v0 {

/// How the index keys of one chunk and lane are laid out.
enum class index_key_layout : std::int32_t {
  interleaved,  ///< key after key, each its values and then its scale
  planar,       ///< the values of all the chunk's keys, then all their scales
};

/// What an index key is made of. Scales are little-endian and lie behind the values.
enum class index_key_type : std::int32_t {
  e4m3,   ///< one byte a value, one f32 scale a key: DeepSeek-V3.2 and V4
  bf16,   ///< no scale
  f16,    ///< no scale
  int8,   ///< one signed byte a value, one f32 scale a key
  mxfp4,  ///< two e2m1 values a byte, one e8m0 scale byte for each 32 values (OCP MX)
};

/// The enumerator's name, e.g. "e4m3". Never null.
FLASHMEMORY_API const char* to_string(index_key_type type) noexcept;

/// The index keys of a sequence: small vectors beside K and V that level 1 scans over the whole history. A lane is one
/// such sequence of keys, of one target layer or key encoder.
struct index_key_geometry {
  std::int32_t lanes = 0;  ///< kept per sequence; 0 = none
  std::int32_t dim = 128;  ///< values of a key; mxfp4: a multiple of 32
  index_key_type type = index_key_type::e4m3;
  std::int32_t tokens_per_key = 4;  ///< must divide tokens_per_chunk()
  index_key_layout layout = index_key_layout::interleaved;

  /// Bytes of a key's values.
  constexpr std::int32_t value_bytes() const noexcept {
    return type == index_key_type::mxfp4                                 ? dim / 2
           : type == index_key_type::bf16 || type == index_key_type::f16 ? dim * 2
                                                                         : dim;
  }
  /// Bytes of its scale or scales.
  constexpr std::int32_t scale_bytes() const noexcept {
    return type == index_key_type::mxfp4                                 ? dim / 32
           : type == index_key_type::bf16 || type == index_key_type::f16 ? 0
                                                                         : 4;
  }
  /// Bytes of one key.
  constexpr std::int32_t bytes() const noexcept { return value_bytes() + scale_bytes(); }
};

/// What an entry of one layer is.
enum class kv_format : std::int32_t {
  separate,     ///< a K and a V vector per head, of the geometry's dtype
  deepseek_v4,  ///< one quantised entry that is key and value, and the lightning key of the layer's own indexer
};

/// The shape of what a store holds. Stated by the engine, never inferred from a buffer.
struct kv_geometry {
  std::int32_t layers = 0;
  std::int32_t kv_heads = 0;
  std::int32_t key_dim = 0;    ///< elements of one K vector
  std::int32_t value_dim = 0;  ///< elements of one V vector; may differ from key_dim
  dtype type = dtype::bf16;    ///< of stored K and V

  std::int32_t entries_per_chunk = 64;
  std::int32_t tokens_per_entry = 1;  ///< 1 in ordinary models, 4 in DeepSeek-V4 CSA

  index_key_geometry index_keys;

  /// deepseek_v4 asks for 1 KV head, key_dim 512, value_dim 128, type bf16 and a power of two of entries_per_chunk.
  /// deepseek_v4::append() appends entries and lightning keys, neither quantised: the store does that, see
  /// deepseek_v4::quantise_entry() and quantise_key() with a floor of 1e-4.
  kv_format format = kv_format::separate;

  /// Tokens that one chunk holds.
  constexpr std::int64_t tokens_per_chunk() const noexcept {
    return std::int64_t{entries_per_chunk} * tokens_per_entry;
  }
  /// Index keys of one chunk and lane.
  constexpr std::int64_t index_keys_per_chunk() const noexcept {
    return tokens_per_chunk() / index_keys.tokens_per_key;
  }

  /// Chunks that `tokens` tokens touch; the last one may be partly filled.
  constexpr std::int64_t chunks_for(std::int64_t tokens) const noexcept {
    const std::int64_t each = tokens_per_chunk();
    return tokens / each + (tokens % each > 0);
  }

  /// Entries that are complete once the first `tokens` tokens are there.
  constexpr std::int64_t entries_for(std::int64_t tokens) const noexcept { return tokens / tokens_per_entry; }
};

/// Where things lie inside one chunk. A chunk is one block: layer after layer, each padded to 64 bytes. Per layer
///  - separate: K [kv_heads, entries_per_chunk, key_dim], then V [kv_heads, entries_per_chunk, value_dim];
///  - deepseek_v4: a page of entries_per_chunk entries, page_bytes() with its padding, then a planar page of as many
///    lightning keys: [entries_per_chunk, 128] e4m3, [entries_per_chunk] f32 scales. In DeepSeek-V4-Flash, 64 entries of 4
///    tokens each: 37,440 + 8,448 bytes. "K block" and "V block" below are these two.
struct chunk_layout {
  kv_geometry geometry;

  /// Of a valid geometry; see validate().
  constexpr explicit chunk_layout(const kv_geometry& g) noexcept : geometry(g) {}

  constexpr std::size_t key_block_bytes() const noexcept {  ///< K of one layer and head
    if (geometry.format == kv_format::deepseek_v4)
      return std::size_t(deepseek_v4::page_bytes(geometry.entries_per_chunk));
    return std::size_t(geometry.entries_per_chunk) * std::size_t(geometry.key_dim) * size_of(geometry.type);
  }
  constexpr std::size_t value_block_bytes() const noexcept {  ///< V of one layer and head
    if (geometry.format == kv_format::deepseek_v4)
      return std::size_t(geometry.entries_per_chunk) * std::size_t(deepseek_v4::lightning_key_bytes);
    return std::size_t(geometry.entries_per_chunk) * std::size_t(geometry.value_dim) * size_of(geometry.type);
  }
  constexpr std::size_t layer_bytes() const noexcept {  ///< one layer, padded
    const std::size_t raw = std::size_t(geometry.kv_heads) * (key_block_bytes() + value_block_bytes());
    return (raw + 63) / 64 * 64;
  }
  /// One chunk, all layers.
  constexpr std::size_t chunk_bytes() const noexcept { return std::size_t(geometry.layers) * layer_bytes(); }
  /// Byte offset of one head's K block in a chunk.
  constexpr std::size_t key_offset(std::int64_t layer, std::int64_t head) const noexcept {
    return std::size_t(layer) * layer_bytes() + std::size_t(head) * key_block_bytes();
  }
  /// Byte offset of one head's V block in a chunk.
  constexpr std::size_t value_offset(std::int64_t layer, std::int64_t head) const noexcept {
    return std::size_t(layer) * layer_bytes() + std::size_t(geometry.kv_heads) * key_block_bytes() +
           std::size_t(head) * value_block_bytes();
  }
  /// Bytes of the index keys of one chunk and lane.
  constexpr std::size_t index_key_page_bytes() const noexcept {
    return std::size_t(geometry.index_keys_per_chunk()) * std::size_t(geometry.index_keys.bytes());
  }
};

/// Throws argument_error naming the field if a store cannot be built on `g` (non-positive extents,
/// tokens_per_key that does not divide a chunk, sizes beyond 2^31 bytes a chunk, extents that the format does not have).
FLASHMEMORY_API void validate(const kv_geometry& g);

}  // namespace v0
}  // namespace flashmemory
