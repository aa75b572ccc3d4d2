// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/c/flashmemory.h>

#include <flashmemory/status.hpp>

namespace flashmemory {
inline namespace v0 {
namespace c {

/// The last fault of this thread, from here on, and its code.
fm_status note(const fault& f) noexcept;
/// The same in words. `text` is cut where it does not fit.
fm_status note(fm_status code, const char* text) noexcept;
/// After a step call on something whose last fault is `f`: nothing if `code` is ok.
fm_status result(status code, const fault& f) noexcept;
/// In a catch block: what the exception says.
fm_status note_exception() noexcept;

/// Calls `body`, which may throw.
template <class Body>
fm_status guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (...) {
    return note_exception();
  }
}

inline fm_status refuse(status code, const char* what, std::int64_t expected = -1,
                        std::int64_t actual = -1) noexcept {
  fault f;
  f.code = code;
  f.what = what;
  f.expected = expected;
  f.actual = actual;
  return note(f);
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
