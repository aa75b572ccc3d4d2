// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/config.hpp>
#include <string>
#include <string_view>

namespace flashmemory {
inline namespace v0 {

/// Writes a file whole or not at all: what was there before stays until everything is on the disk. What is no regular
/// file (a terminal, a pipe, /dev/stdout) is written to as it is.
/// \throws io_failure naming `path` and the reason
FLASHMEMORY_API void write_file(const std::string& path, std::string_view content);

/// Whether write_file() would get as far as the first byte: for programs that work for hours before they write. Leaves
/// nothing behind.
/// \throws io_failure naming `path` and the reason: no such folder, a folder itself, read-only
FLASHMEMORY_API void check_output_file(const std::string& path);

/// The same for a folder that is made if it is not there and gets new files.
/// \throws io_failure naming `path` and the reason
FLASHMEMORY_API void check_output_folder(const std::string& path);

}  // namespace v0
}  // namespace flashmemory
