// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <flashmemory/config.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {

/// What formatted() calls.
FLASHMEMORY_API std::string formatted_arguments(fmt::string_view text, fmt::format_args args);

/// fmt::format, whose header-only implementation every file that calls it compiles anew. Here one file does.
template <class... Args>
std::string formatted(fmt::format_string<Args...> text, Args&&... args) {
#if FMT_VERSION >= 100000  // newer ones deprecate the conversion that is all that older ones have
  return formatted_arguments(text.get(), fmt::make_format_args(args...));
#else
  return formatted_arguments(text, fmt::make_format_args(args...));
#endif
}

}  // namespace v0
}  // namespace flashmemory
