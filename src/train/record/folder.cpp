// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <memory>

#include "src/core/format.hpp"
#include "src/io/input.hpp"
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
  flashmemory::detail::file_input file(path);
  std::vector<char> piece(std::size_t{256} << 10);
  for (std::uint64_t left = file.size(); left > 0;) {
    const auto bytes = static_cast<std::size_t>(std::min<std::uint64_t>(left, piece.size()));
    file.read(piece.data(), bytes, "the file");
    f(piece.data(), bytes);
    left -= bytes;
  }
}

}  // namespace

std::string manifest_path(const std::string& folder, const std::string& writer) {
  return formatted("{}/manifest.{}.json", folder, writer);
}

std::string shard_path(const std::string& folder, const std::string& writer, std::int64_t number) {
  return formatted("{}/shard.{}.{:06}.safetensors", folder, writer, number);
}

std::int64_t shard_number(const std::string& writer, std::string_view name) {
  const std::string before = formatted("shard.{}.", writer);
  constexpr std::string_view after = ".safetensors";
  if (name.size() <= before.size() + after.size() || name.substr(0, before.size()) != before) return -1;
  std::int64_t number = 0;
  const std::string_view digits = name.substr(before.size(), name.size() - before.size() - after.size());
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  // Written otherwise - fewer zeros, more behind it - it is somebody else's.
  const bool same = error == std::errc() && number >= 0 && shard_path("", writer, number).substr(1) == name;
  return same ? number : -1;
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
