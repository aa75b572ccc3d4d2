// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <stdexcept>
#include <vector>

namespace flashmemory::reference {

/// A store of one sequence that has index keys and nothing else: just enough to score against.
class key_store final : public chunk_store {
 public:
  /// \param streams per key stream: rows of key_bytes bytes, interleaved
  key_store(const kv_geometry& geometry, const std::vector<std::vector<std::byte>>& streams)
      : geometry_(geometry) {
    const auto row = static_cast<std::size_t>(geometry.key_bytes);
    const auto page = static_cast<std::size_t>(geometry.keys_per_chunk());
    for (const auto& rows : streams) {
      const std::size_t keys = rows.size() / row;
      std::vector<std::byte> pages((keys + page - 1) / page * page * row, std::byte{0xee});
      for (std::size_t first = 0; first < keys; first += page) {
        const std::size_t count = std::min(page, keys - first);
        if (geometry.keys == key_layout::planar) {
          repack_keys(rows.data() + first * row, pages.data() + first * row, static_cast<std::int64_t>(count),
                      static_cast<std::int64_t>(page), geometry.key_bytes, true);
        } else {
          std::memcpy(pages.data() + first * row, rows.data() + first * row, count * row);
        }
      }
      streams_.push_back({std::move(pages), static_cast<std::int64_t>(keys)});
    }
  }

  /// What keys() reports instead of ok.
  status failure = status::ok;

  const kv_geometry& geometry() const noexcept override { return geometry_; }

  status keys(sequence_handle, std::int32_t index, key_pages* out) const noexcept override {
    if (failure != status::ok) return failure;
    if (index < 0 || static_cast<std::size_t>(index) >= streams_.size()) return status::out_of_range;
    const auto& s = streams_[static_cast<std::size_t>(index)];
    *out = {s.pages.data(), s.keys};
    return status::ok;
  }

  sequence_handle open(const sequence_options&) override { throw std::logic_error("key_store"); }
  sequence_handle fork(sequence_handle, const sequence_options&) override {
    throw std::logic_error("key_store");
  }
  status truncate(sequence_handle, std::int64_t) noexcept override { return status::unsupported; }
  status close(sequence_handle) noexcept override { return status::unsupported; }
  status append(batch, std::int32_t, const_tensor<3>, const_tensor<3>, stream_ref) noexcept override {
    return status::unsupported;
  }
  status append_keys(sequence_handle, std::int32_t, std::int64_t, view<const std::byte, 2>,
                     stream_ref) noexcept override {
    return status::unsupported;
  }
  status recall(sequence_handle, view<const chunk_id, 1>, recall_report*, stream_ref) noexcept override {
    return status::unsupported;
  }
  status start_recall(sequence_handle, view<const chunk_id, 1>, recall_report*,
                      stream_ref) noexcept override {
    return status::unsupported;
  }
  status poll_recall(sequence_handle) noexcept override { return status::unsupported; }
  status finish_recall(sequence_handle, late_policy, recall_report*, stream_ref) noexcept override {
    return status::unsupported;
  }
  status cancel_recall(sequence_handle) noexcept override { return status::unsupported; }
  status resident(sequence_handle, std::int32_t, resident_set*) const noexcept override {
    return status::unsupported;
  }
  bool is_open(sequence_handle) const noexcept override { return true; }
  status info(sequence_handle, sequence_info*) const noexcept override { return status::unsupported; }
  status read_chunk(sequence_handle, chunk_id, view<std::byte, 1>) const noexcept override {
    return status::unsupported;
  }
  status append_chunk(sequence_handle, view<const std::byte, 1>, std::int64_t) noexcept override {
    return status::unsupported;
  }
  store_counters counters() const noexcept override { return {}; }
  store_usage usage() const noexcept override { return {}; }
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
inline kv_geometry key_geometry(std::int32_t streams, std::int32_t keys_per_chunk, key_layout layout) {
  kv_geometry g;
  g.layers = 64;
  g.kv_heads = 1;
  g.key_dim = g.value_dim = 64;
  g.entries_per_chunk = keys_per_chunk * 4;
  g.key_streams = streams;
  g.keys = layout;
  return g;
}

}  // namespace flashmemory::reference
