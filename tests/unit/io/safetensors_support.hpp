// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <flashmemory/io/safetensors.hpp>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.hpp"

namespace flashmemory_test {

/// A file image: length, header text, `payload` bytes counting up.
inline std::vector<std::byte> image_of(const std::string& header, std::size_t payload) {
  std::vector<std::byte> image(8 + header.size() + payload);
  const std::uint64_t length = header.size();
  std::memcpy(image.data(), &length, 8);
  std::memcpy(image.data() + 8, header.data(), header.size());
  for (std::size_t i = 0; i < payload; ++i) image[8 + header.size() + i] = static_cast<std::byte>(i);
  return image;
}

inline std::vector<std::byte> bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> text((std::istreambuf_iterator<char>(in)), {});
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

inline void write_bytes(const std::string& path, const std::vector<std::byte>& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

/// What the format_error of parsing says, or "" if the image is accepted.
inline std::string refusal(const std::vector<std::byte>& image) {
  try {
    const flashmemory::safetensors_file file(image.data(), image.size(), "the-file");
    return "";
  } catch (const flashmemory::format_error& e) {
    return e.what();
  }
}

}  // namespace flashmemory_test
