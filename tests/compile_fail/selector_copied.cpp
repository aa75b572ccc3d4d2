// SPDX-License-Identifier: MIT
// error: use of deleted function|call to deleted
#include <flashmemory/select/selector.hpp>

namespace fm = flashmemory;

void call(fm::selector& select) {
#ifdef MISUSE
  fm::selector other = select;
#else
  fm::selector& other = select;
#endif
  (void)other;
}
