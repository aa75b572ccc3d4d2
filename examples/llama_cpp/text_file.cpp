// SPDX-License-Identifier: MIT
#include "text_file.hpp"

#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

namespace llama_flashmemory {

std::vector<std::string> read_paragraphs(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::vector<std::string> out;
  std::string line, current;
  const auto end = [&] {
    if (!current.empty()) out.push_back(std::move(current));
    current.clear();
  };
  while (std::getline(file, line)) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) {
      end();
    } else {
      current += (current.empty() ? "" : " ") + line;
    }
  }
  end();
  if (out.empty()) throw std::runtime_error(path + ": there is no text in it");
  return out;
}

std::vector<needle> make_needles(int count, unsigned seed) {
  static const char* const keys[] = {"apple",  "bridge", "candle", "desert", "engine", "forest",
                                     "garden", "hammer", "island", "jacket", "kettle", "ladder",
                                     "mirror", "needle", "orange", "pencil", "quartz", "ribbon",
                                     "saddle", "tunnel", "violin", "window", "yellow", "zipper"};
  if (count < 0 || count > static_cast<int>(std::size(keys)))
    throw std::runtime_error("between 0 and " + std::to_string(std::size(keys)) + " numbers can be hidden");
  std::mt19937 random(seed);
  std::vector<needle> out;
  for (int i = 0; i < count; ++i) {
    std::string number;
    for (int digit = 0; digit < 5; ++digit) number += static_cast<char>('1' + random() % 9);
    out.push_back({keys[(static_cast<std::size_t>(i) * 7 + seed) % std::size(keys)], number});
  }
  return out;
}

}  // namespace llama_flashmemory
