// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/view.hpp>
#include <map>
#include <vector>

/// Made-up K and V of the store's tests, which can be computed again from an entry's tag, and what of them is stored.
namespace store_testing {

namespace fm = flashmemory;

/// DeepSeek-V4's format at a small size.
inline fm::kv_geometry small_v4_geometry(std::int32_t entries_per_chunk = 4) {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = 1;
  g.key_dim = fm::deepseek_v4::entry_dim;
  g.value_dim = fm::deepseek_v4::lightning_dim;
  g.format = fm::kv_format::deepseek_v4;
  g.entries_per_chunk = entries_per_chunk;
  g.tokens_per_entry = 4;
  g.index_keys.lanes = 1;
  g.index_keys.tokens_per_key = 4;
  g.index_keys.layout = fm::index_key_layout::planar;
  return g;
}

inline std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Fills `bytes` bytes of K or V of one entry, layer and head; any bit pattern, NaNs included.
inline void fill_vector(std::byte* out, std::size_t bytes, std::uint64_t tag, std::int64_t layer,
                        std::int64_t head, bool value) {
  std::uint64_t x = mixed(mixed(tag) ^ mixed(std::uint64_t(layer) * 4099 + std::uint64_t(head) * 2 + value));
  for (std::size_t i = 0; i < bytes; i += 8) {
    x = mixed(x + i);
    std::memcpy(out + i, &x, std::min<std::size_t>(8, bytes - i));
  }
}

/// A vector of an entry of DeepSeek-V4: bf16 numbers of many magnitudes, now and then one that is not finite.
inline std::vector<float> made_v4_vector(std::uint64_t tag, std::int64_t layer, bool value) {
  std::vector<float> out(std::size_t(value ? fm::deepseek_v4::lightning_dim : fm::deepseek_v4::entry_dim));
  std::vector<std::byte> bits(out.size() * 2);
  fill_vector(bits.data(), bits.size(), tag, layer, 0, value);
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t half;
    std::memcpy(&half, bits.data() + 2 * i, 2);
    // 2^-15 to 2, except in one entry of many.
    if (value || tag % 61 != 0) half = std::uint16_t((half & 0x87ff) | 0x3800);
    const std::uint32_t wide = std::uint32_t{half} << 16;
    std::memcpy(&out[i], &wide, 4);
  }
  return out;
}

/// Where one entry of a layer lies in a chunk: calls f(offset, bytes) for each part.
template <class F>
void for_each_part(const fm::kv_geometry& g, std::int64_t layer, std::int64_t entry, const F& f) {
  const fm::chunk_layout layout(g);
  if (g.format == fm::kv_format::deepseek_v4) {
    const std::size_t page = layout.key_offset(layer, 0), keys = layout.value_offset(layer, 0);
    const std::size_t each = std::size_t(g.entries_per_chunk), e = std::size_t(entry);
    f(page + e * 576, std::size_t(576));
    f(page + each * 576 + e * 8, std::size_t(8));
    f(keys + e * 128, std::size_t(128));
    f(keys + each * 128 + e * 4, std::size_t(4));
    return;
  }
  const std::size_t key = std::size_t(g.key_dim) * size_of(g.type);
  const std::size_t value = std::size_t(g.value_dim) * size_of(g.type);
  for (std::int64_t h = 0; h < g.kv_heads; ++h) {
    f(layout.key_offset(layer, h) + std::size_t(entry) * key, key);
    f(layout.value_offset(layer, h) + std::size_t(entry) * value, value);
  }
}

/// What is stored of one entry, its parts one after another.
inline std::vector<std::byte> stored_entry(const fm::kv_geometry& g, std::uint64_t tag, std::int64_t layer) {
  std::vector<std::byte> out;
  if (g.format == fm::kv_format::deepseek_v4) {
    static std::map<std::pair<std::uint64_t, std::int64_t>, std::vector<std::byte>> known;
    std::vector<std::byte>& bytes = known[{tag, layer}];
    if (bytes.empty()) {
      bytes.resize(576 + 8 + 132);
      fm::deepseek_v4::quantise_entry(made_v4_vector(tag, layer, false).data(), bytes.data(),
                                      bytes.data() + 576);
      fm::quantise_key(made_v4_vector(tag, layer, true).data(), bytes.data() + 584, 1e-4f);
    }
    return bytes;
  }
  const std::size_t key = std::size_t(g.key_dim) * size_of(g.type);
  const std::size_t value = std::size_t(g.value_dim) * size_of(g.type);
  out.resize(std::size_t(g.kv_heads) * (key + value));
  for (std::int64_t h = 0; h < g.kv_heads; ++h) {
    std::byte* const at = out.data() + std::size_t(h) * (key + value);
    fill_vector(at, key, tag, layer, h, false);
    fill_vector(at + key, value, tag, layer, h, true);
  }
  return out;
}

/// Packed rows of one layer for entries with these tags.
struct made_rows {
  std::vector<std::byte> k, v;
  fm::const_tensor<3> k_view, v_view;
};

inline made_rows make_rows(const fm::kv_geometry& g, const std::vector<std::uint64_t>& tags,
                           std::int64_t layer) {
  made_rows r;
  if (g.format == fm::kv_format::deepseek_v4) {
    const auto pack = [&](bool value, std::vector<std::byte>& to) {
      for (const std::uint64_t tag : tags) {
        const std::vector<float> row = made_v4_vector(tag, layer, value);
        const auto* const bytes = reinterpret_cast<const std::byte*>(row.data());
        to.insert(to.end(), bytes, bytes + row.size() * 4);
      }
      to.push_back({});
    };
    pack(false, r.k);
    pack(true, r.v);
    r.k_view = fm::const_tensor<3>(r.k.data(), fm::dtype::f32, tags.size(), 1, g.key_dim);
    r.v_view = fm::const_tensor<3>(r.v.data(), fm::dtype::f32, tags.size(), 1, g.value_dim);
    return r;
  }
  const std::size_t key = std::size_t(g.key_dim) * size_of(g.type);
  const std::size_t value = std::size_t(g.value_dim) * size_of(g.type);
  const auto heads = std::size_t(g.kv_heads);
  r.k.resize(tags.size() * heads * key + 1);
  r.v.resize(tags.size() * heads * value + 1);
  for (std::size_t e = 0; e < tags.size(); ++e)
    for (std::size_t h = 0; h < heads; ++h) {
      fill_vector(r.k.data() + (e * heads + h) * key, key, tags[e], layer, std::int64_t(h), false);
      fill_vector(r.v.data() + (e * heads + h) * value, value, tags[e], layer, std::int64_t(h), true);
    }
  r.k_view = fm::const_tensor<3>(r.k.data(), g.type, tags.size(), g.kv_heads, g.key_dim);
  r.v_view = fm::const_tensor<3>(r.v.data(), g.type, tags.size(), g.kv_heads, g.value_dim);
  return r;
}

/// Chunk `chunk` as the layout defines it; `entries(layer)` entries are there, the others and the padding are
/// zero.
template <class Entries>
std::vector<std::byte> expected_chunk(const fm::kv_geometry& g, const std::vector<std::uint64_t>& tags,
                                      std::int64_t chunk, const Entries& entries) {
  const fm::chunk_layout layout(g);
  std::vector<std::byte> out(layout.chunk_bytes());
  for (std::int64_t layer = 0; layer < g.layers; ++layer)
    for (std::int64_t e = 0; e < g.entries_per_chunk; ++e) {
      const std::int64_t entry = chunk * g.entries_per_chunk + e;
      if (entry >= entries(layer)) break;
      const std::vector<std::byte> bytes = stored_entry(g, tags[std::size_t(entry)], layer);
      std::size_t at = 0;
      for_each_part(g, layer, e, [&](std::size_t offset, std::size_t count) {
        std::memcpy(out.data() + offset, bytes.data() + at, count);
        at += count;
      });
    }
  return out;
}

inline std::vector<std::byte> expected_chunk(const fm::kv_geometry& g, const std::vector<std::uint64_t>& tags,
                                             std::int64_t chunk) {
  return expected_chunk(g, tags, chunk, [&](std::int64_t) { return std::int64_t(tags.size()); });
}

}  // namespace store_testing
