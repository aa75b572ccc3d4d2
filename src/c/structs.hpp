// SPDX-License-Identifier: MIT
#pragma once

#include <cstring>

#include "src/c/faults.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {

/// Sets a struct of the caller's, who may know fewer fields than this library, to `defaults`.
template <class T>
fm_status initialise(T* out, std::size_t struct_size, const T& defaults, const char* name) noexcept {
  if (!out) return refuse(status::null_data, name);
  if (struct_size < sizeof(std::size_t) || struct_size > sizeof(T))
    return refuse(status::bad_argument,
                  "struct_size: the header is newer than the library, or it is not sizeof",
                  static_cast<std::int64_t>(sizeof(T)), static_cast<std::int64_t>(struct_size));
  std::memcpy(out, &defaults, struct_size);
  out->struct_size = struct_size;
  return FM_OK;
}

/// The caller's struct with the fields that it does not know at their defaults. Null is all defaults.
template <class T>
fm_status read(const T* in, const T& defaults, const char* name, T* out) noexcept {
  *out = defaults;
  if (!in) return FM_OK;
  std::size_t size = 0;
  std::memcpy(&size, in, sizeof(size));
  if (size < sizeof(std::size_t) || size > sizeof(T)) {
    static_cast<void>(name);
    return refuse(status::bad_argument,
                  "struct_size: not set by the struct's fm_init function, or the header is newer",
                  static_cast<std::int64_t>(sizeof(T)), static_cast<std::int64_t>(size));
  }
  std::memcpy(static_cast<void*>(out), in, size);
  out->struct_size = sizeof(T);
  return FM_OK;
}

/// Hands a struct out to a caller who has set its size.
template <class T>
fm_status write(T* out, T value, const char* name) noexcept {
  if (!out) return refuse(status::null_data, name);
  const std::size_t size = out->struct_size;
  if (size < sizeof(std::size_t) || size > sizeof(T))
    return refuse(status::bad_argument, "struct_size: set it to sizeof before the call",
                  static_cast<std::int64_t>(sizeof(T)), static_cast<std::int64_t>(size));
  value.struct_size = size;
  std::memcpy(static_cast<void*>(out), &value, size);
  return FM_OK;
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
