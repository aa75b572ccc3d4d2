// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/status.hpp>
#include <stdexcept>
#include <string>

namespace flashmemory {
inline namespace v0 {

/// Base of everything that set-up calls throw (constructing, opening, loading, saving). `code()` tells
/// programs what `what()` tells people.
class FLASHMEMORY_API error : public std::runtime_error {
 public:
  /// For the library and for implementations of its interfaces.
  error(status code, const std::string& message);
  /// What kind of failure it is, for programs.
  status code() const noexcept { return code_; }

 private:
  status code_;
};

/// A parameter struct or argument that cannot work, e.g. a geometry with zero layers.
class FLASHMEMORY_API argument_error : public error {
 public:
  using error::error;
};

/// A request that does not fit a budget. The message carries the arithmetic in bytes.
class FLASHMEMORY_API admission_error : public error {
 public:
  using error::error;
};

/// A file that is truncated, foreign, of another version, or does not fit the geometry. Names the file and
/// the tensor or field.
class FLASHMEMORY_API format_error : public error {
 public:
  using error::error;
};

/// The operating system refused to open, read, write, sync or rename a file. Names the file and the reason.
class FLASHMEMORY_API io_failure : public error {
 public:
  using error::error;
};

}  // namespace v0
}  // namespace flashmemory
