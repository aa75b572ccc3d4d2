// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/config.hpp>
#include <string>
#include <string_view>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// The folder of a path, "." if it names none.
std::string folder_of(const std::string& path);

/// Name of a temporary file for `path`, which no other writer has: "<path>.<process>-<number>.tmp".
std::string temporary_name(const std::string& path);

/// Whether temporary_name() gives such a name to a file called `base`.
FLASHMEMORY_API bool is_temporary_of(std::string_view name, std::string_view base) noexcept;

/// Marks a temporary file as in use for as long as `descriptor` or a copy of it is open. False if it has been removed
/// meanwhile, so that another one is needed.
bool hold_temporary(int descriptor) noexcept;

/// Removes temporary files of `path` that nobody holds: their writers were killed. Does what it can.
void remove_leftovers(const std::string& path) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
