// SPDX-License-Identifier: MIT
// error: could not convert|cannot convert|no known conversion|no matching function|no viable conversion|has
// no
#include <flashmemory/store/chunk_store.hpp>

namespace fm = flashmemory;

fm::status call(fm::chunk_store& store, fm::sequence_handle sequence, fm::chunk_id chunk) {
#ifdef MISUSE
  (void)sequence;
  return store.close(chunk);
#else
  (void)chunk;
  return store.close(sequence);
#endif
}
