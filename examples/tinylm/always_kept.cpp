// SPDX-License-Identifier: MIT
#include "always_kept.hpp"

namespace tinylm {

namespace fm = flashmemory;

always_kept kept_by(const std::string& indexer_path) {
  const fm::selection_policy trained_for = fm::recommended_policy(indexer_path);
  return {trained_for.interval, trained_for.sink_chunks, trained_for.recent_chunks};
}

}  // namespace tinylm
