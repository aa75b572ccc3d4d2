// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/io/safetensors.hpp>
#include <string>
#include <string_view>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// A file of which only those tensors are read whose names begin with `prefix`, which must not be empty: the bytes of
/// the others are zero. \throws as safetensors_file's constructor
FLASHMEMORY_API safetensors_file read_safetensors_part(const std::string& path, std::string_view prefix);

struct safetensors_access {
  static safetensors_file open(const std::string& path, std::string_view prefix);
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
