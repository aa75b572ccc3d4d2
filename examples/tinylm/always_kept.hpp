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
/// \throws flashmemory::io_failure, format_error
always_kept kept_by(const std::string& indexer_path);

}  // namespace tinylm
