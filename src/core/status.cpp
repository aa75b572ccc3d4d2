// SPDX-License-Identifier: MIT
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/flashmemory.hpp>
#include <flashmemory/status.hpp>

#include "src/core/format.hpp"

#define FLASHMEMORY_TEXT_(x) #x
#define FLASHMEMORY_TEXT(x) FLASHMEMORY_TEXT_(x)

namespace flashmemory {
inline namespace v0 {

const char* to_string(status code) noexcept {
  switch (code) {
    case status::ok:
      return "ok";
    case status::bad_shape:
      return "bad_shape";
    case status::bad_dtype:
      return "bad_dtype";
    case status::bad_argument:
      return "bad_argument";
    case status::null_data:
      return "null_data";
    case status::unknown_sequence:
      return "unknown_sequence";
    case status::stale_sequence:
      return "stale_sequence";
    case status::out_of_order:
      return "out_of_order";
    case status::out_of_range:
      return "out_of_range";
    case status::sequence_full:
      return "sequence_full";
    case status::budget_exceeded:
      return "budget_exceeded";
    case status::not_resident:
      return "not_resident";
    case status::index_keys_missing:
      return "index_keys_missing";
    case status::hidden_missing:
      return "hidden_missing";
    case status::not_finite:
      return "not_finite";
    case status::workspace_small:
      return "workspace_small";
    case status::corrupt_chunk:
      return "corrupt_chunk";
    case status::io_error:
      return "io_error";
    case status::stale_slot:
      return "stale_slot";
    case status::unsupported:
      return "unsupported";
    case status::cuda_error:
      return "cuda_error";
    case status::pending:
      return "pending";
    case status::timed_out:
      return "timed_out";
  }
  return "unknown status";
}

std::string describe(const fault& f) {
  std::string text = to_string(f.code);
  if (f.what && *f.what) text += formatted(": {}", f.what);
  const auto field = [&](const char* name, std::int64_t value) {
    if (value != -1) text += formatted(", {} {}", name, value);
  };
  field("sequence", f.sequence);
  field("chunk", f.chunk);
  field("layer", f.layer);
  field("lane", f.lane);
  field("expected", f.expected);
  field("actual", f.actual);
  if (f.os_error != 0)
    text += f.code == status::cuda_error ? formatted(", cudaError_t {}", f.os_error)
                                         : formatted(", {}", std::strerror(f.os_error));
  return text;
}

error::error(status code, const std::string& message) : std::runtime_error(message), code_(code) {}

const char* version() noexcept {
  return FLASHMEMORY_TEXT(FLASHMEMORY_VERSION_MAJOR) "." FLASHMEMORY_TEXT(
      FLASHMEMORY_VERSION_MINOR) "." FLASHMEMORY_TEXT(FLASHMEMORY_VERSION_PATCH);
}

}  // namespace v0
}  // namespace flashmemory
