// SPDX-License-Identifier: MIT
#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {

std::string formatted_arguments(fmt::string_view text, fmt::format_args args) {
  return fmt::vformat(text, args);
}

}  // namespace v0
}  // namespace flashmemory
