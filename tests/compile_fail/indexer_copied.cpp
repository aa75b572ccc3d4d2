// SPDX-License-Identifier: MIT
// error: use of deleted function|call to implicitly-deleted|call to deleted
#include <flashmemory/indexer/controls.hpp>

namespace fm = flashmemory;

void call(fm::recency_indexer& index) {
#ifdef MISUSE
  fm::recency_indexer other = index;
#else
  fm::indexer& other = index;
#endif
  (void)other;
}
