// SPDX-License-Identifier: MIT
// error: use of deleted function|uses deleted function
#include <flashmemory/stream.hpp>

void work(flashmemory::stream_ref) {}

void call(int number) {
#ifdef MISUSE
  work(flashmemory::stream_ref(number));
#else
  (void)number;
  work(flashmemory::stream_ref::host());
#endif
}
