// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <utility>

#include "src/core/format.hpp"
#include "src/train/record/random.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {

const recording_geometry& recordings_source::geometry() const { return data_.geometry(); }
const std::vector<document_info>& recordings_source::documents() const { return data_.documents(); }
document recordings_source::load(std::int64_t index) const { return data_.load(index); }
std::string recordings_source::fingerprint() const { return data_.fingerprint(); }

memory_source::memory_source(recording_geometry geometry, std::vector<document> documents)
    : geometry_(std::move(geometry)), documents_(std::move(documents)) {
  validate(geometry_);
  if (documents_.empty()) throw argument_error(status::bad_argument, "memory_source: there is no document");
  for (const document& doc : documents_) {
    document_info info;
    info.name = formatted("{}/{}", doc.tag, infos_.size());
    check_document(doc, geometry_, info.name);
    info.tag = doc.tag;
    info.split = doc.split;
    info.tokens = doc.tokens;
    info.queries = static_cast<std::int64_t>(doc.positions.size());
    info.attention_tokens = doc.attention.tokens();
    info.evidence = static_cast<std::int64_t>(doc.evidence.size());
    info.bytes = doc.bytes();
    infos_.push_back(std::move(info));
  }
}

const recording_geometry& memory_source::geometry() const { return geometry_; }

const std::vector<document_info>& memory_source::documents() const { return infos_; }

document memory_source::load(std::int64_t index) const {
  if (index < 0 || index >= static_cast<std::int64_t>(documents_.size())) {
    throw argument_error(status::out_of_range,
                         formatted("memory_source: document {} of {}", index, documents_.size()));
  }
  return documents_[static_cast<std::size_t>(index)];
}

std::string memory_source::fingerprint() const {
  std::uint64_t sums[2] = {1, 2};
  for (const document& doc : documents_) {
    const auto mix = [&](const std::byte* data, std::size_t bytes) {
      for (std::size_t i = 0; i < bytes; ++i) {
        for (std::uint64_t& sum : sums) sum = detail::scatter(sum ^ std::to_integer<std::uint64_t>(data[i]));
      }
    };
    for (const row_matrix& rows : doc.queries) mix(rows.data(), rows.bytes());
    for (const document_keys& keys : doc.keys) {
      mix(keys.inputs.data(), keys.inputs.bytes());
      mix(keys.native.data(), keys.native.size());
    }
  }
  return formatted("{:016x}{:016x}", sums[0], sums[1]);
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
