// SPDX-License-Identifier: MIT
// error: could not convert|conversion from|no viable conversion|cannot convert
#include <flashmemory/view.hpp>

namespace fm = flashmemory;

void call(fm::view<float, 3> cube, fm::view<float, 2> square) {
#ifdef MISUSE
  fm::view<const float, 2> v = cube;
#else
  fm::view<const float, 2> v = square;
#endif
  (void)v;
  (void)cube;
}
