// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "policy_cell.hpp"
#include "run_record.hpp"

namespace tinylm {

struct memory_options {
  flashmemory::dtype kv_type = flashmemory::dtype::bf16;
  std::int64_t max_tokens = 0;    ///< of the longest sequence, generated tokens included
  std::string indexer_path;       ///< the trained indexer's artifact
  std::uint64_t random_seed = 1;  ///< of the random policy
  std::string trace_path;         ///< where what is chosen is written down; empty = nowhere
};

class memory;

/// A sequence that continues a prompt under one policy. Closes itself.
class branch {
 public:
  branch(branch&& other) noexcept;
  branch& operator=(branch&&) = delete;
  ~branch();

  const served_sequence& sequence() const noexcept { return sequence_; }
  const policy_cell& cell() const noexcept { return *cell_; }

  /// Null for "full", where nothing is ever chosen.
  flashmemory::selector* chooser() const noexcept { return chooser_; }

  std::int64_t tokens() const;
  footprint measure() const;
  std::vector<flashmemory::chunk_id> resident() const;

 private:
  friend class memory;
  branch() = default;

  memory* owner_ = nullptr;
  const policy_cell* cell_ = nullptr;
  served_sequence sequence_;
  flashmemory::selector* chooser_ = nullptr;
  std::size_t index_bytes_ = 0;  ///< beside the store's index keys
  bool uses_keys_ = false;
};

/// The store, the indexers with a selector each, and how a prompt that was processed once is continued under
/// each policy.
class memory {
 public:
  /// \param cells  what prompts will be continued with, with the same chunks always kept; kept by reference
  memory(engine& model, const std::vector<policy_cell>& cells, const memory_options& options);
  ~memory();
  memory(const memory&) = delete;
  memory& operator=(const memory&) = delete;

  flashmemory::tiered_chunk_store& store() noexcept { return *store_; }
  const flashmemory::dual_encoder_indexer* trained() const noexcept { return trained_.get(); }
  flashmemory::oracle_indexer* oracle() noexcept { return oracle_.get(); }
  /// Null without memory_options::trace_path.
  flashmemory::selection_trace* trace() noexcept { return trace_.get(); }

  /// An empty sequence for a prompt, which every indexer in use observes. It stays as it is while branches
  /// use it.
  served_sequence open_prompt(std::int64_t max_tokens);
  void close_prompt(const served_sequence& prompt);

  /// Continues `prompt` under `cell`, one of those the memory was made for: shares its complete chunks, and
  /// takes over what its observers saw.
  branch fork(const served_sequence& prompt, const policy_cell& cell, std::int64_t max_tokens);

 private:
  friend class branch;
  struct ranking;  ///< an indexer with its selector

  ranking& ranking_of(const policy_cell& cell);
  void close(flashmemory::sequence_handle handle) noexcept;

  always_kept kept_;  ///< by all cells
  std::unique_ptr<flashmemory::tiered_chunk_store> store_;
  std::unique_ptr<flashmemory::selection_trace> trace_;
  std::shared_ptr<flashmemory::dual_encoder_indexer> trained_;
  std::shared_ptr<flashmemory::oracle_indexer> oracle_;
  std::vector<std::unique_ptr<ranking>> rankings_;
};

}  // namespace tinylm
