// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/record/document.hpp>
#include <flashmemory/train/record/recordings.hpp>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// Where training and calibration get their documents from.
class FLASHMEMORY_API document_source {
 public:
  virtual ~document_source() = default;
  document_source(const document_source&) = delete;
  document_source& operator=(const document_source&) = delete;

  /// Common to all documents.
  virtual const recording_geometry& geometry() const = 0;
  /// What there is, in an order that does not change.
  virtual const std::vector<document_info>& documents() const = 0;
  /// Reads document `index`. \throws as recordings::load()
  virtual document load(std::int64_t index) const = 0;
  /// Names the content.
  virtual std::string fingerprint() const = 0;

 protected:
  document_source() = default;
};

/// Recordings on disk; `data` must outlive it.
class FLASHMEMORY_API recordings_source final : public document_source {
 public:
  /// Reads from `data`, which it does not own.
  explicit recordings_source(const recordings& data) : data_(data) {}
  const recording_geometry& geometry() const override;
  const std::vector<document_info>& documents() const override;
  document load(std::int64_t index) const override;
  std::string fingerprint() const override;

 private:
  const recordings& data_;
};

/// Documents in memory, for an engine that trains on what it has just seen.
class FLASHMEMORY_API memory_source final : public document_source {
 public:
  /// \throws argument_error if the geometry cannot work or there is no document; format_error naming a document
  ///     that does not fit the geometry, by its tag and number
  memory_source(recording_geometry geometry, std::vector<document> documents);
  const recording_geometry& geometry() const override;
  const std::vector<document_info>& documents() const override;
  document load(std::int64_t index) const override;
  std::string fingerprint() const override;

 private:
  recording_geometry geometry_;
  std::vector<document> documents_;
  std::vector<document_info> infos_;
};

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
