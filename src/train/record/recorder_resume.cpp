// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <set>

#include "src/core/format.hpp"
#include "src/io/atomic_file.hpp"
#include "src/train/record/recorder_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

namespace fs = std::filesystem;

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

/// This writer's files that `m` does not list: shards of a run that ended before it could list them, parts of
/// documents that were never finished, temporary files.
void remove_unlisted(const std::string& folder, const manifest& m) {
  std::set<std::string> listed;
  for (const shard_entry& s : m.shards)
    listed.insert(fs::path(shard_path(folder, m.writer, s.number)).filename());
  const std::string shard = formatted("shard.{}.", m.writer);
  const std::string temporary = formatted("manifest.{}.json.", m.writer);
  std::error_code code;
  std::vector<fs::path> unlisted;
  for (fs::directory_iterator at(folder, code), end; !code && at != end; at.increment(code)) {
    const std::string name = at->path().filename();
    if ((starts_with(name, shard) && listed.count(name) == 0) || starts_with(name, temporary))
      unlisted.push_back(at->path());
  }
  for (const fs::path& path : unlisted) {
    if (code) break;
    fs::remove(path, code);
  }
  if (code)
    throw io_failure(status::io_error, formatted("cannot tidy the folder {}: {}", folder, code.message()));
}

void check_shards(const std::string& folder, const manifest& m) {
  for (const shard_entry& s : m.shards) {
    const std::string path = shard_path(folder, m.writer, s.number);
    std::error_code code;
    const auto bytes = fs::file_size(path, code);
    if (code)
      throw format_error(status::io_error, formatted("{}: the manifest lists it: {}", path, code.message()));
    if (bytes != s.bytes)
      throw format_error(status::bad_shape,
                         formatted("{}: {} bytes, the manifest says {}", path, bytes, s.bytes));
  }
}

}  // namespace

folder_lock::folder_lock(const std::string& folder, const std::string& writer) {
  std::error_code code;
  fs::create_directory(folder, code);
  if (code)
    throw io_failure(status::io_error, formatted("cannot make the folder {}: {}", folder, code.message()));
  const std::string path = formatted("{}/recorder.{}.lock", folder, writer);
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0)
    throw io_failure(status::io_error, formatted("cannot open {}: {}", path, std::strerror(errno)));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    ::close(descriptor_);
    throw io_failure(status::io_error, reason == EWOULDBLOCK
                                           ? formatted("{}: another recorder writes as '{}'", folder, writer)
                                           : formatted("cannot lock {}: {}", path, std::strerror(reason)));
  }
}

folder_lock::~folder_lock() { ::close(descriptor_); }

void write_manifest(const std::string& folder, const manifest& m) {
  const std::string text = to_text(m);
  flashmemory::detail::atomic_file file(manifest_path(folder, m.writer));
  file.write(text.data(), text.size());
  file.commit();
}

manifest resume_manifest(const std::string& folder, const recording_geometry& geometry,
                         const std::string& writer) {
  manifest m;
  m.writer = writer;
  m.geometry = geometry;
  bool found = false;
  for (const std::string& name : manifests_of(folder)) {
    const std::string path = folder + '/' + name;
    manifest other = parse_manifest(read_text(path), path);
    if (path != manifest_path(folder, other.writer))
      throw format_error(status::bad_argument, formatted("{}: is writer '{}'s manifest", path, other.writer));
    if (other.geometry != geometry)
      throw format_error(status::bad_shape, formatted("{}: recordings of another geometry or model", path));
    if (other.writer != writer) continue;
    m = std::move(other);
    found = true;
  }
  std::set<std::int64_t> used;
  for (const manifest_document& d : m.documents) used.insert(d.parts.begin(), d.parts.end());
  const std::size_t before = m.shards.size();
  m.shards.erase(std::remove_if(m.shards.begin(), m.shards.end(),
                                [&](const shard_entry& s) { return used.count(s.number) == 0; }),
                 m.shards.end());
  check_shards(folder, m);
  if (!found || m.shards.size() != before) write_manifest(folder, m);
  remove_unlisted(folder, m);
  return m;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
