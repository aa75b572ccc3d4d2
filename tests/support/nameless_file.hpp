// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>

namespace flashmemory_test {

/// A path that opens the newest file without a name that this process holds in `folder`.
inline std::string nameless_file_in(const std::string& folder) {
  std::string found;
  int newest = -1;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    const int number = std::stoi(entry.path().filename().string());
    const bool nameless = target.size() > 10 && target.compare(target.size() - 10, 10, " (deleted)") == 0;
    if (gone || !nameless || target.rfind(folder + '/', 0) != 0 || number < newest) continue;
    newest = number;
    found = entry.path().string();
  }
  if (found.empty()) throw std::runtime_error("no file without a name in " + folder);
  return found;
}

}  // namespace flashmemory_test
