// SPDX-License-Identifier: MIT
// error: could not convert|conversion from|no viable conversion|cannot convert
#include <flashmemory/view.hpp>

namespace fm = flashmemory;

void call(fm::view<float, 2> writable, fm::view<const float, 2> read_only) {
#ifdef MISUSE
  fm::tensor<2> t = read_only;
#else
  fm::tensor<2> t = writable;
  fm::const_tensor<2> c = read_only;
  (void)c;
#endif
  (void)t;
}
