// SPDX-License-Identifier: MIT
#include "machine.hpp"

#include <fstream>

namespace llama_flashmemory {

double process_mebibytes(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    if (word != field) continue;
    double kib = 0;
    file >> kib;
    return kib / 1024;
  }
  return 0;
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  std::string name = "unknown", vectors;
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (colon == std::string::npos) continue;
    if (line.rfind("model name", 0) == 0) name = line.substr(colon + 2);
    if (line.rfind("flags", 0) != 0) continue;
    for (const char* flag : {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"}) {
      if ((line + " ").find(std::string(" ") + flag + " ") != std::string::npos)
        vectors += std::string(" ") + flag;
    }
    break;
  }
  return name + vectors;
}

}  // namespace llama_flashmemory
