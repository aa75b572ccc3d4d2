// SPDX-License-Identifier: MIT
#include "src/c/faults.hpp"

#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/flashmemory.hpp>
#include <new>
#include <stdexcept>

namespace flashmemory {
inline namespace v0 {
namespace c {
namespace {

/// Numbers until somebody asks, so that noting one allocates nothing.
struct noted {
  fault numbers;
  fm_status code = FM_OK;
  char text[sizeof(fm_fault::text)] = {};
  bool in_words = false;
};
thread_local noted last;

static_assert(int(status::timed_out) == FM_TIMED_OUT, "statuses of C are those of C++");

void copy_text(char (&to)[sizeof(fm_fault::text)], const char* from) noexcept {
  const std::size_t bytes = std::min(std::strlen(from), sizeof(to) - 1);
  std::memcpy(to, from, bytes);
  to[bytes] = 0;
}

}  // namespace

fm_status note(const fault& f) noexcept {
  last.numbers = f;
  last.code = static_cast<fm_status>(f.code);
  last.in_words = false;
  return last.code;
}

fm_status note(fm_status code, const char* text) noexcept {
  last.numbers = fault{};
  last.code = code;
  last.in_words = true;
  copy_text(last.text, text);
  return code;
}

fm_status result(status code, const fault& f) noexcept {
  if (code == status::ok) return FM_OK;
  if (f.code == code) return note(f);
  return refuse(code, "");
}

fm_status note_exception() noexcept {
  try {
    throw;
  } catch (const error& e) {
    return note(static_cast<fm_status>(e.code()), e.what());
  } catch (const std::bad_alloc&) {
    return note(FM_NO_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return note(FM_NO_MEMORY, "a size that no memory has");
  } catch (const std::exception& e) {
    return note(FM_EXCEPTION, e.what());
  } catch (...) {
    return note(FM_EXCEPTION, "something was thrown that is no exception");
  }
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory

namespace c = flashmemory::c;

void fm_last_fault(fm_fault* out) {
  if (!out) return;
  const flashmemory::fault& f = c::last.numbers;
  out->code = c::last.code;
  out->os_error = f.os_error;
  out->sequence = f.sequence;
  out->chunk = f.chunk;
  out->layer = f.layer;
  out->lane = f.lane;
  out->expected = f.expected;
  out->actual = f.actual;
  out->text[0] = 0;
  if (c::last.code == FM_OK) return;
  if (c::last.in_words) {
    std::memcpy(out->text, c::last.text, sizeof(out->text));
    return;
  }
  try {
    c::copy_text(out->text, describe(f).c_str());
  } catch (...) {
    c::copy_text(out->text, f.what);
  }
}

const char* fm_status_name(fm_status code) {
  switch (code) {
    case FM_BAD_HANDLE:
      return "bad_handle";
    case FM_BUSY:
      return "busy";
    case FM_IN_USE:
      return "in_use";
    case FM_NO_MEMORY:
      return "no_memory";
    case FM_EXCEPTION:
      return "exception";
    default:
      return code < FM_OK || code > FM_TIMED_OUT ? "unknown"
                                                 : to_string(static_cast<flashmemory::status>(code));
  }
}

const char* fm_version(void) { return flashmemory::version(); }

int32_t fm_abi_version(void) { return FM_ABI_VERSION; }
