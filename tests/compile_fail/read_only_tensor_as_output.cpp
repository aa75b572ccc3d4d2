// SPDX-License-Identifier: MIT
// error: could not convert|cannot convert|no viable conversion|invalid conversion|no matching function
#include <flashmemory/attend/sparse_attend.hpp>

namespace fm = flashmemory;

fm::status call(const fm::chunk_reader& reader, fm::batch items, fm::const_tensor<3> q, fm::tensor<3> out) {
#ifdef MISUSE
  return fm::sparse_attend(reader, items, 0, q, fm::const_tensor<3>(out), {}, fm::stream_ref::host());
#else
  return fm::sparse_attend(reader, items, 0, q, out, {}, fm::stream_ref::host());
#endif
}
