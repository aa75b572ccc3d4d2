// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <memory>

#include "src/core/format.hpp"
#include "src/train/record/manifest.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const char* action, const std::string& path, const std::string& reason) {
  throw io_failure(status::io_error, formatted("cannot {} {}: {}", action, path, reason));
}

/// Calls f(data, bytes) for a file's content in pieces.
template <class F>
void each_piece(const std::string& path, F&& f) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
  if (!file) refuse("open", path, std::strerror(errno));
  std::vector<char> piece(std::size_t{256} << 10);
  for (;;) {
    const std::size_t bytes = std::fread(piece.data(), 1, piece.size(), file.get());
    f(piece.data(), bytes);
    if (bytes == piece.size()) continue;
    if (std::ferror(file.get())) refuse("read", path, std::strerror(errno));
    return;
  }
}

}  // namespace

std::string manifest_path(const std::string& folder, const std::string& writer) {
  return formatted("{}/manifest.{}.json", folder, writer);
}

std::string shard_path(const std::string& folder, const std::string& writer, std::int64_t number) {
  return formatted("{}/shard.{}.{:06}.safetensors", folder, writer, number);
}

std::string read_text(const std::string& path) {
  std::string text;
  each_piece(path, [&](const char* data, std::size_t bytes) { text.append(data, bytes); });
  return text;
}

std::uint64_t file_checksum(const std::string& path) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  if (!state) throw std::bad_alloc();
  XXH3_64bits_reset(state.get());
  each_piece(path,
             [&](const char* data, std::size_t bytes) { XXH3_64bits_update(state.get(), data, bytes); });
  return XXH3_64bits_digest(state.get());
}

std::vector<std::string> manifests_of(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code code;
  for (fs::directory_iterator at(folder, code), end; !code && at != end; at.increment(code)) {
    const std::string name = at->path().filename().string();
    if (name.size() > 14 && name.compare(0, 9, "manifest.") == 0 &&
        name.compare(name.size() - 5, 5, ".json") == 0)
      names.push_back(name);
  }
  if (code) refuse("read the folder", folder, code.message());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
