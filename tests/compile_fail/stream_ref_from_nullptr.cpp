// SPDX-License-Identifier: MIT
// error: use of deleted function|conversion function from 'std::nullptr_t'|call to deleted|invokes a deleted
// function
#include <flashmemory/stream.hpp>

void work(flashmemory::stream_ref) {}

void call(CUstream_st* stream) {
#ifdef MISUSE
  (void)stream;
  work(nullptr);
#else
  work(flashmemory::stream_ref(stream));
#endif
}
