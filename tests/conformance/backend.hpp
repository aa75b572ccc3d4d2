// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/flashmemory.hpp>
#include <memory>
#include <string>
#include <vector>

/// What the conformance suite needs of a backend. Tensors are host memory here; a backend that computes
/// elsewhere copies them there and back, so that one suite runs on all of them.
class conformance_backend {
 public:
  virtual ~conformance_backend() = default;
  virtual std::string name() const = 0;

  /// Null if the backend cannot run on this machine; the suite then reports it as skipped.
  virtual std::unique_ptr<flashmemory::chunk_store> make_store(
      const flashmemory::store_options& options) const = 0;

  /// A selector over such a store whose level 1 is the indexer's, on the host or elsewhere.
  virtual std::unique_ptr<flashmemory::selector> make_selector(
      flashmemory::chunk_store& store, flashmemory::dual_encoder_indexer& index,
      const flashmemory::selection_policy& policy, const flashmemory::selector_options& options) const = 0;

  virtual std::unique_ptr<flashmemory::selector> make_selector(
      flashmemory::chunk_store& store, flashmemory::pooled_keys_indexer& index,
      const flashmemory::selection_policy& policy, const flashmemory::selector_options& options) const = 0;

  virtual flashmemory::stream_ref stream() const = 0;

  /// Query tokens of an item that attend() takes, at most.
  virtual std::int32_t most_tokens() const { return 1 << 30; }

  virtual flashmemory::status append(flashmemory::chunk_store& store, flashmemory::batch items,
                                     std::int32_t layer, const std::vector<float>& k,
                                     const std::vector<float>& v) const = 0;

  virtual flashmemory::status observe(flashmemory::selector& select, flashmemory::batch items,
                                      std::int32_t layer, const std::vector<float>& hidden) const = 0;

  virtual flashmemory::status observe_queries(flashmemory::selector& select, flashmemory::batch items,
                                              std::int32_t layer, const std::vector<float>& q) const = 0;

  virtual flashmemory::status observe_keys(flashmemory::selector& select, flashmemory::batch items,
                                           std::int32_t layer, const std::vector<float>& k) const = 0;

  /// The index keys of one lane as they lie in the store: whole pages.
  virtual std::vector<std::byte> index_keys(const flashmemory::chunk_store& store,
                                            flashmemory::sequence_handle sequence,
                                            std::int32_t lane) const = 0;

  /// options.scratch and options.lse are provided by the backend.
  virtual flashmemory::status attend(const flashmemory::chunk_store& store, flashmemory::batch items,
                                     std::int32_t layer, std::int32_t query_heads,
                                     const std::vector<float>& q, std::vector<float>& out,
                                     std::vector<float>& lse,
                                     const flashmemory::attend_options& options) const = 0;
};

/// Bytes of the pages that hold a lane's keys.
inline std::size_t page_bytes_of(const flashmemory::kv_geometry& g,
                                 const flashmemory::index_key_pages& pages) {
  const std::int64_t each = g.index_keys_per_chunk();
  return std::size_t((pages.keys + each - 1) / each) * flashmemory::chunk_layout(g).index_key_page_bytes();
}

/// Every backend of this build.
const std::vector<std::unique_ptr<conformance_backend>>& conformance_backends();
