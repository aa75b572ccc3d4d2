// SPDX-License-Identifier: MIT
// error: use of deleted function|call to implicitly-deleted|call to deleted
#include <flashmemory/store/tiered_chunk_store.hpp>

namespace fm = flashmemory;

void call(fm::tiered_chunk_store& store) {
#ifdef MISUSE
  fm::tiered_chunk_store other = store;
#else
  fm::chunk_store& other = store;
#endif
  (void)other;
}
