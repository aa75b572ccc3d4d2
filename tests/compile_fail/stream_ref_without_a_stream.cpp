// SPDX-License-Identifier: MIT
// error: use of deleted function|call to deleted
#include <flashmemory/stream.hpp>

void call() {
#ifdef MISUSE
  flashmemory::stream_ref stream;
#else
  flashmemory::stream_ref stream = flashmemory::stream_ref::host();
#endif
  (void)stream;
}
