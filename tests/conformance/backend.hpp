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

  virtual flashmemory::stream_ref stream() const = 0;

  /// Query tokens of an item that attend() takes, at most.
  virtual std::int32_t most_tokens() const { return 1 << 30; }

  virtual flashmemory::status append(flashmemory::chunk_store& store, flashmemory::batch items,
                                     std::int32_t layer, const std::vector<float>& k,
                                     const std::vector<float>& v) const = 0;

  virtual flashmemory::status observe(flashmemory::selector& select, flashmemory::batch items,
                                      std::int32_t layer, const std::vector<float>& hidden) const = 0;

  /// options.scratch and options.lse are provided by the backend.
  virtual flashmemory::status attend(const flashmemory::chunk_store& store, flashmemory::batch items,
                                     std::int32_t layer, std::int32_t query_heads,
                                     const std::vector<float>& q, std::vector<float>& out,
                                     std::vector<float>& lse,
                                     const flashmemory::attend_options& options) const = 0;
};

/// Every backend of this build.
const std::vector<std::unique_ptr<conformance_backend>>& conformance_backends();
