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

namespace tinylm {

/// One row of a comparison: who ranks chunks, and how much may stay.
struct policy_cell {
  std::string name;   ///< full, lsa, lsa-threshold, recency, random, quest or oracle
  double budget = 0;  ///< fraction of the complete chunks; 0 where the policy has no such limit
  flashmemory::selection_policy policy;

  bool full() const noexcept { return name == "full"; }
  std::string label() const;  ///< e.g. "lsa 13.5%"
};

/// \param interval  tokens between two choices
/// \throws std::invalid_argument for a name that is not one of the above
policy_cell make_cell(const std::string& name, double budget, std::int32_t interval = 64);

/// Every policy with every budget, those without a budget once.
std::vector<policy_cell> make_cells(const std::vector<std::string>& names, const std::vector<double>& budgets,
                                    std::int32_t interval = 64);

/// Fast-tier bytes of one sequence, and what the same tokens take when all of them are resident.
struct footprint {
  std::size_t slots = 0;  ///< K and V of resident chunks
  std::size_t index = 0;  ///< index keys, or whatever else the policy ranks by
  std::size_t tables = 0;
  std::size_t everything = 0;  ///< K and V of all chunks
  std::int64_t resident_chunks = 0;
  std::int64_t chunks = 0;

  std::size_t total() const noexcept { return slots + index + tables; }
  double fraction() const noexcept {
    return everything == 0 ? 0.0 : static_cast<double>(total()) / static_cast<double>(everything);
  }
};

struct memory_options {
  flashmemory::dtype kv_type = flashmemory::dtype::bf16;
  std::int64_t max_tokens = 0;    ///< of the longest sequence, generated tokens included
  std::string indexer_path;       ///< the trained indexer's artifact
  std::uint64_t random_seed = 1;  ///< of the random policy
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
  /// \param cells  what prompts will be continued with; kept by reference
  memory(engine& model, const std::vector<policy_cell>& cells, const memory_options& options);
  ~memory();
  memory(const memory&) = delete;
  memory& operator=(const memory&) = delete;

  flashmemory::tiered_chunk_store& store() noexcept { return *store_; }
  const flashmemory::dual_encoder_indexer* trained() const noexcept { return trained_.get(); }
  flashmemory::oracle_indexer* oracle() noexcept { return oracle_.get(); }

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

  std::unique_ptr<flashmemory::tiered_chunk_store> store_;
  std::shared_ptr<flashmemory::dual_encoder_indexer> trained_;
  std::shared_ptr<flashmemory::oracle_indexer> oracle_;
  std::vector<std::unique_ptr<ranking>> rankings_;
};

}  // namespace tinylm
