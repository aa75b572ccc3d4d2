// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/train/record/recordings.hpp>
#include <mutex>
#include <set>
#include <utility>

#include "src/core/format.hpp"
#include "src/io/safetensors_part.hpp"
#include "src/train/record/document_part.hpp"
#include "src/train/record/manifest.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {

using detail::manifest;
using detail::shard_entry;

struct recordings::impl {
  struct place {
    std::size_t writer;    ///< of manifests
    std::size_t document;  ///< of the writer's
  };

  impl(const std::string& path, const recordings_options& o) : folder(path), options(o) {
    for (const std::string& name : detail::manifests_of(folder)) {
      const std::string file = folder + '/' + name;
      manifest m = detail::parse_manifest(detail::read_text(file), file);
      if (file != detail::manifest_path(folder, m.writer))
        throw format_error(status::bad_argument, formatted("{}: is writer '{}'s manifest", file, m.writer));
      if (!manifests.empty() && m.geometry != manifests.front().geometry)
        throw format_error(status::bad_shape,
                           formatted("{}: recordings of another geometry or model than {}", file,
                                     detail::manifest_path(folder, manifests.front().writer)));
      for (const shard_entry& shard : m.shards) check_size(m, shard);
      manifests.push_back(std::move(m));
    }
    for (std::size_t w = 0; w < manifests.size(); ++w)
      for (std::size_t d = 0; d < manifests[w].documents.size(); ++d) {
        places.push_back({w, d});
        infos.push_back(manifests[w].documents[d].info);
      }
    if (infos.empty())
      throw argument_error(status::bad_argument,
                           formatted("{}: no recorded documents in this folder", folder));
  }

  std::string path_of(const manifest& m, const shard_entry& shard) const {
    return detail::shard_path(folder, m.writer, shard.number);
  }

  void check_size(const manifest& m, const shard_entry& shard) const {
    const std::string path = path_of(m, shard);
    std::error_code code;
    const auto bytes = std::filesystem::file_size(path, code);
    if (code)
      throw format_error(status::io_error, formatted("{}: the manifest lists it: {}", path, code.message()));
    if (bytes != shard.bytes)
      throw format_error(status::bad_shape,
                         formatted("{}: {} bytes, the manifest says {}", path, bytes, shard.bytes));
  }

  void check_checksum(const manifest& m, const shard_entry& shard) const {
    const std::string path = path_of(m, shard);
    if (detail::file_checksum(path) != shard.checksum)
      throw format_error(status::corrupt_chunk, formatted("{}: damaged, its checksum does not match", path));
  }

  /// Compares a shard's checksum unless that was done before.
  void check_once(std::size_t writer, const shard_entry& shard) {
    {
      const std::lock_guard<std::mutex> lock(guard);
      if (checked.count({writer, shard.number}) != 0) return;
    }
    check_checksum(manifests[writer], shard);
    const std::lock_guard<std::mutex> lock(guard);
    checked.insert({writer, shard.number});
  }

  std::string folder;
  recordings_options options;
  std::vector<manifest> manifests;
  std::vector<place> places;
  std::vector<document_info> infos;
  std::mutex guard;
  std::set<std::pair<std::size_t, std::int64_t>> checked;
};

recordings::recordings(const std::string& folder, const recordings_options& options)
    : impl_(std::make_unique<impl>(folder, options)) {}
recordings::~recordings() = default;
recordings::recordings(recordings&&) noexcept = default;
recordings& recordings::operator=(recordings&&) noexcept = default;

const recording_geometry& recordings::geometry() const noexcept { return impl_->manifests.front().geometry; }

const std::vector<document_info>& recordings::documents() const noexcept { return impl_->infos; }

document recordings::load(std::int64_t index) const {
  if (index < 0 || index >= static_cast<std::int64_t>(impl_->places.size()))
    throw argument_error(status::out_of_range,
                         formatted("{}: document {} of {}", impl_->folder, index, impl_->places.size()));
  const impl::place where = impl_->places[static_cast<std::size_t>(index)];
  const manifest& m = impl_->manifests[where.writer];
  const detail::manifest_document& listed = m.documents[where.document];
  if (listed.info.bytes > impl_->options.max_document_bytes)
    throw admission_error(status::budget_exceeded,
                          formatted("{}: document {} takes {} bytes, at most {} are read", impl_->folder,
                                    listed.info.name, listed.info.bytes, impl_->options.max_document_bytes));
  document doc = empty_document(geometry(), dtype::bf16);
  doc.tag = listed.info.tag;
  doc.split = listed.info.split;
  doc.tokens = listed.info.tokens;
  std::string shards;
  for (std::size_t p = 0; p < listed.parts.size(); ++p) {
    const shard_entry& shard = *m.find_shard(listed.parts[p]);
    const std::string path = impl_->path_of(m, shard);
    impl_->check_once(where.writer, shard);
    // A shard holds other documents besides, which need not be read.
    const safetensors_file file =
        flashmemory::detail::read_safetensors_part(path, formatted("{}.{}.", listed.number, p));
    detail::append_part(file, listed.number, static_cast<std::int64_t>(p), geometry(), doc);
    shards += (p == 0 ? "" : ", ") + path;
  }
  const std::string name = formatted("{}: document {}", shards, listed.info.name);
  check_document(doc, geometry(), name);
  if (static_cast<std::int64_t>(doc.positions.size()) != listed.info.queries ||
      doc.attention.tokens() != listed.info.attention_tokens ||
      static_cast<std::int64_t>(doc.evidence.size()) != listed.info.evidence)
    throw format_error(status::bad_shape, name + ": counts differ from the manifest's");
  return doc;
}

void recordings::verify() const {
  for (std::size_t w = 0; w < impl_->manifests.size(); ++w)
    for (const shard_entry& shard : impl_->manifests[w].shards) {
      impl_->check_size(impl_->manifests[w], shard);
      impl_->check_checksum(impl_->manifests[w], shard);
    }
}

std::string recordings::fingerprint() const {
  std::string text;
  for (const manifest& m : impl_->manifests) text += detail::to_text(m);
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return formatted("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
