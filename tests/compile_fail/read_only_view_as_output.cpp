// SPDX-License-Identifier: MIT
// error: invalid conversion|could not convert|cannot convert|no viable conversion|invalid initialization|no
// known conversion|no matching function
#include <flashmemory/attend/sparse_attend.hpp>

namespace fm = flashmemory;

fm::status call(fm::view<float, 3> writable, fm::view<const float, 3> read_only, fm::view<float, 2> lse) {
#ifdef MISUSE
  return fm::merge_attention(read_only, lse, read_only, lse);
#else
  return fm::merge_attention(writable, lse, read_only, lse);
#endif
}
