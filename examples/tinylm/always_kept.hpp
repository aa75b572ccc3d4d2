// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <string>

namespace tinylm {

/// How often is chosen, and which chunks stay whatever is chosen. They count in the budget.
struct always_kept {
  std::int32_t interval = 64;  ///< tokens between two choices
  std::int32_t sink = 1;       ///< first chunks
  std::int32_t recent = 2;     ///< newest complete chunks; 2 is the paper's own setting at our budgets
};

/// What an indexer's file says it was trained for; the defaults where it says nothing.
/// \throws flashmemory::io_failure, format_error if it is no safetensors file, std::runtime_error naming it if what
///     it says cannot be read
always_kept kept_by(const std::string& indexer_path);

/// `policy` for a prompt of so many complete chunks: where the budget is too small for its recent chunks, with as many
/// as leave half of the budget to be chosen, but no less than 2.
flashmemory::selection_policy fitted(flashmemory::selection_policy policy, std::int64_t complete_chunks);

}  // namespace tinylm
