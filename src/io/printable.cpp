// SPDX-License-Identifier: MIT
#include <cstdint>

#include "src/io/safetensors_header.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

/// The character at the start of `text` and its bytes; 0 bytes if that is no UTF-8.
std::size_t decode(std::string_view text, std::uint32_t* character) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t first = byte(0);
  const std::size_t bytes = first < 0x80   ? 1
                            : first < 0xc2 ? 0
                            : first < 0xe0 ? 2
                            : first < 0xf0 ? 3
                            : first < 0xf5 ? 4
                                           : 0;
  if (bytes == 0 || bytes > text.size()) return 0;
  constexpr std::uint8_t mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
  *character = first & mask[bytes];
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    *character = *character << 6 | (byte(i) & 0x3fu);
  }
  constexpr std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = *character >= 0xd800 && *character < 0xe000;
  return *character < least[bytes] || surrogate || *character > 0x10ffff ? 0 : bytes;
}

bool is_letter_of_sorts(std::uint32_t c) noexcept {
  const bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
  const bool separates = c == 0x2028 || c == 0x2029;
  const bool turns = c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x202a && c <= 0x202e) ||
                     (c >= 0x2066 && c <= 0x2069);
  return !control && !separates && !turns;
}

}  // namespace

std::string printable(std::string_view text) {
  constexpr std::size_t longest = 120;
  std::string out;
  while (!text.empty()) {
    std::uint32_t character = 0;
    const std::size_t bytes = decode(text, &character);
    const bool shown = bytes > 0 && is_letter_of_sorts(character);
    if (out.size() + (shown ? bytes : 1) > longest) return out + "...";
    if (shown)
      out.append(text.substr(0, bytes));
    else
      out += '?';
    text.remove_prefix(bytes > 0 ? bytes : 1);
  }
  return out;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
