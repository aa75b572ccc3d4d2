// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "src/core/format.hpp"
#include "src/io/atomic_file.hpp"
#include "src/io/leftovers.hpp"
#include "src/io/safetensors_header.hpp"
#include "src/io/safetensors_part.hpp"
#include "src/train/record/recorder_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw format_error(status::bad_argument, formatted("{}: {}", path, what));
}

/// What of the folder belongs to this writer besides its manifest and its lock.
struct own_files {
  std::vector<std::pair<std::int64_t, fs::path>> shards;
  std::vector<fs::path> temporaries;
};

own_files find_own(const std::string& folder, const std::string& writer) {
  const std::string manifest_name = fs::path(manifest_path(folder, writer)).filename();
  constexpr std::string_view shard_end = ".safetensors";
  own_files own;
  std::error_code code;
  for (fs::directory_iterator at(folder, code), end; !code && at != end; at.increment(code)) {
    const std::string name = at->path().filename();
    const std::string shard = name.substr(0, name.find(shard_end) + shard_end.size());
    if (const std::int64_t number = shard_number(writer, name); number >= 0)
      own.shards.emplace_back(number, at->path());
    else if (flashmemory::detail::is_temporary_of(name, manifest_name) ||
             (shard_number(writer, shard) >= 0 && flashmemory::detail::is_temporary_of(name, shard)))
      own.temporaries.push_back(at->path());
  }
  if (code)
    throw io_failure(status::io_error, formatted("cannot read the folder {}: {}", folder, code.message()));
  return own;
}

/// Whether a shard that the manifest in force does not list was written after it, and thus left by a crash: no other
/// manifest can have listed it. One that is no whole file holds nothing that one could have.
bool is_leftover(const fs::path& shard, const std::string& digest) {
  try {
    // Of no tensor; only the header is read.
    const safetensors_file file = flashmemory::detail::read_safetensors_part(shard.string(), "-");
    const auto follows = file.metadata().find(follows_field);
    return follows != file.metadata().end() && follows->second == digest;
  } catch (const format_error&) {
    return true;
  }
}

void remove(const std::string& folder, const std::vector<fs::path>& files) {
  std::error_code code;
  for (const fs::path& path : files)
    if (!code) fs::remove(path, code);
  if (code)
    throw io_failure(status::io_error, formatted("cannot tidy the folder {}: {}", folder, code.message()));
}

void check_settings(const std::string& path, const manifest& m, const recorder_options& options) {
  const auto text = [](const std::map<std::string, std::string>& from, const std::string& name) {
    const auto found = from.find(name);
    return found == from.end() ? std::string("not stated") : flashmemory::detail::printable(found->second);
  };
  std::set<std::string> names;
  for (const auto* settings : {&m.settings, &options.settings})
    for (const auto& setting : *settings) names.insert(setting.first);
  for (const std::string& name : names)
    if (const auto theirs = text(m.settings, name), mine = text(options.settings, name); theirs != mine)
      refuse(path, formatted("recorded with another '{}': it was {}, it is {} now",
                             flashmemory::detail::printable(name), theirs, mine));
  if (!m.rows.empty() && m.rows != to_string(options.rows))
    refuse(path, formatted("recorded with another 'rows': it was {}, it is {} now",
                           flashmemory::detail::printable(m.rows), to_string(options.rows)));
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
                         const recorder_options& options) {
  const std::string own_path = manifest_path(folder, options.writer);
  manifest m;
  m.writer = options.writer;
  m.geometry = geometry;
  m.settings = options.settings;
  m.rows = to_string(options.rows);
  bool found = false;
  for (const std::string& name : manifests_of(folder)) {
    const std::string path = folder + '/' + name;
    if (options.fresh && path == own_path) continue;
    manifest other = parse_manifest(read_text(path), path);
    if (path != manifest_path(folder, other.writer))
      throw format_error(status::bad_argument, formatted("{}: is writer '{}'s manifest", path, other.writer));
    if (other.geometry != geometry)
      throw format_error(status::bad_shape, formatted("{}: recordings of another geometry or model", path));
    if (other.writer != options.writer) continue;
    check_settings(path, other, options);
    m = std::move(other);
    found = true;
  }
  const std::string digest = digest_of(m);
  std::set<std::int64_t> listed, used;
  for (const shard_entry& s : m.shards) listed.insert(s.number);
  for (const manifest_document& d : m.documents) used.insert(d.parts.begin(), d.parts.end());
  m.shards.erase(std::remove_if(m.shards.begin(), m.shards.end(),
                                [&](const shard_entry& s) { return used.count(s.number) == 0; }),
                 m.shards.end());
  check_shards(folder, m);

  const own_files own = find_own(folder, options.writer);
  std::vector<fs::path> leftovers = own.temporaries;
  for (const auto& [number, path] : own.shards) {
    if (used.count(number) > 0) continue;
    if (!found && !options.fresh)
      refuse(
          own_path,
          formatted("is not there, but {} shards of writer '{}' are, {} among them; without it they cannot "
                    "be read and will not be deleted. Bring it back, or record under another name",
                    own.shards.size(), options.writer, path.string()));
    if (!options.fresh && listed.count(number) == 0 && !is_leftover(path, digest))
      refuse(path.string(),
             formatted("{} does not list it, and it was not left behind by a run that ended there: is "
                       "that an older manifest? Bring the newest one back, or move the shard away",
                       own_path));
    leftovers.push_back(path);
  }
  // A new start first drops the manifest's claims, else its shards: after a crash in between, the same call goes on.
  if (options.fresh) write_manifest(folder, m);
  remove(folder, leftovers);
  if (!options.fresh && (!found || m.shards.size() != listed.size())) write_manifest(folder, m);
  return m;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
