// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <flashmemory/io/safetensors.hpp>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Longest JSON header that is read; the reference implementation's limit.
inline constexpr std::size_t max_header_bytes = 100'000'000;

struct safetensors_header {
  std::vector<tensor_entry> tensors;  // in order of their offsets, `data` set
  std::map<std::string, std::string> metadata;
};

/// Checks a whole file image. \throws format_error
safetensors_header parse_safetensors(const std::byte* data, std::size_t bytes, const std::string& file);

std::optional<tensor_type> tensor_type_of(std::string_view name) noexcept;

/// Number of elements, or nothing if an extent is negative or the product overflows.
std::optional<std::int64_t> element_count(const std::vector<std::int64_t>& shape) noexcept;

/// What a file begins with, before the tensors' bytes in their order: length and header. The tensors' `data` is
/// not read. \throws argument_error naming `path` and the tensor as write_safetensors()
FLASHMEMORY_API std::string safetensors_preamble(const std::string& path,
                                                 const std::vector<tensor_entry>& tensors,
                                                 const std::map<std::string, std::string>& metadata);

/// A name out of a file as it may stand in a message: of bounded length, and whatever a terminal or a log would take for
/// more than a letter - control characters, what turns the direction of writing, bytes that are no UTF-8 - as '?'.
FLASHMEMORY_API std::string printable(std::string_view text);

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
