// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/train/calibrate/calibrate.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <string>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// How an artifact came to be, kept in the metadata of its file beside what load_dual_encoder() reads.
struct training_record {
  window_options windows;  ///< interval, sink, recent and chunk size that it was trained for
  std::string run;         ///< trainer::describe(), JSON; empty = not stated
  std::string start;  ///< trainer::start(): kind of start, or the indexer it went on from; empty = not stated
  std::string recordings;       ///< fingerprint of the training data; empty = not stated
  std::string calibrated_on;    ///< fingerprint of the data of calibration and evaluation; empty = not stated
  std::string library_version;  ///< that wrote it; filled in by save_artifact()
  bool calibrated = false;
  train::calibration calibration;  ///< if calibrated
  std::string evaluation;          ///< to_json() of the held-out evaluation; empty = none
};

/// Writes a dual encoder with its record, atomically: whoever reads `path` sees the old file or the whole new one.
/// \throws argument_error, io_failure
FLASHMEMORY_API void save_artifact(const dual_encoder_config& config, training_record record,
                                   const std::string& path);

/// Names an indexer's weights, thresholds included: 16 hex digits.
FLASHMEMORY_API std::string weights_digest(const dual_encoder_config& config);

/// The record of an artifact. \throws format_error naming what is damaged or missing, is of another version, or
///     does not belong to the file's weights; io_failure
FLASHMEMORY_API training_record load_training_record(const std::string& path);

/// Throws argument_error naming the first difference if an engine's store cuts chunks otherwise than the artifact
/// was trained and calibrated for.
FLASHMEMORY_API void check_compatible(const training_record& record, const kv_geometry& geometry);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
