// SPDX-License-Identifier: MIT
// error: ignoring return
#include <flashmemory/store/chunk_store.hpp>

namespace fm = flashmemory;

bool call(fm::chunk_store& store, fm::sequence_handle sequence) {
#ifdef MISUSE
  store.close(sequence);
  return true;
#else
  return store.close(sequence) == fm::status::ok;
#endif
}
