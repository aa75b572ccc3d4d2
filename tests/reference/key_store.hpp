// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/store/chunk_reader.hpp>
#include <vector>

namespace flashmemory::reference {

/// A reader of one sequence that has index keys and nothing else: just enough to score against.
class key_store final : public chunk_reader {
 public:
  /// \param streams per index-key lane: rows of key_bytes bytes, interleaved
  key_store(const kv_geometry& geometry, const std::vector<std::vector<std::byte>>& streams)
      : geometry_(geometry) {
    const auto row = static_cast<std::size_t>(geometry.index_keys.bytes());
    const auto page = static_cast<std::size_t>(geometry.index_keys_per_chunk());
    for (const auto& rows : streams) {
      const std::size_t keys = rows.size() / row;
      std::vector<std::byte> pages((keys + page - 1) / page * page * row, std::byte{0xee});
      for (std::size_t first = 0; first < keys; first += page) {
        const std::size_t count = std::min(page, keys - first);
        if (geometry.index_keys.layout == index_key_layout::planar) {
          repack_keys(rows.data() + first * row, pages.data() + first * row, static_cast<std::int64_t>(count),
                      static_cast<std::int64_t>(page), geometry.index_keys.bytes(), true,
                      geometry.index_keys.scale_bytes());
        } else {
          std::memcpy(pages.data() + first * row, rows.data() + first * row, count * row);
        }
      }
      streams_.push_back({std::move(pages), static_cast<std::int64_t>(keys)});
    }
  }

  /// What index_keys() reports instead of ok.
  status failure = status::ok;

  const kv_geometry& geometry() const noexcept override { return geometry_; }

  status index_keys(sequence_handle, std::int32_t index, index_key_pages* out) const noexcept override {
    if (failure != status::ok) return failure;
    if (index < 0 || static_cast<std::size_t>(index) >= streams_.size()) return status::out_of_range;
    const auto& s = streams_[static_cast<std::size_t>(index)];
    *out = {s.pages.data(), s.keys};
    return status::ok;
  }

  status resident(sequence_handle, std::int32_t, resident_set*, std::uint64_t) const noexcept override {
    return status::unsupported;
  }
  status info(sequence_handle, sequence_info*) const noexcept override { return status::unsupported; }
  status read_chunk(sequence_handle, chunk_id, view<std::byte, 1>) const noexcept override {
    return status::unsupported;
  }
  fault last_fault() const noexcept override { return {}; }

 private:
  struct stream {
    std::vector<std::byte> pages;
    std::int64_t keys = 0;
  };
  kv_geometry geometry_;
  std::vector<stream> streams_;
};

/// A geometry whose chunks hold `keys_per_chunk` keys of 4 tokens.
inline kv_geometry key_geometry(std::int32_t streams, std::int32_t keys_per_chunk, index_key_layout layout) {
  kv_geometry g;
  g.layers = 64;
  g.kv_heads = 1;
  g.key_dim = g.value_dim = 64;
  g.entries_per_chunk = keys_per_chunk * 4;
  g.index_keys.lanes = streams;
  g.index_keys.layout = layout;
  return g;
}

}  // namespace flashmemory::reference
