// SPDX-License-Identifier: MIT
// error: use of deleted function|conversion function from 'int'|call to deleted
#include <flashmemory/stream.hpp>

void work(flashmemory::stream_ref) {}

void call() {
#ifdef MISUSE
  work(0);
#else
  work(flashmemory::stream_ref::host());
#endif
}
