// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/train/record/document.hpp>
#include <memory>
#include <vector>

#include "src/train/learn/encoder.hpp"
#include "src/train/learn/examples.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Which recorded tap and index-key lane every retriever of an architecture reads.
struct model_taps {
  model_taps() = default;
  /// \throws argument_error naming the retriever, if the recordings lack its layer or were pooled otherwise
  model_taps(const dual_encoder_config& config, const recording_geometry& geometry,
             std::int64_t tokens_per_chunk);
  std::vector<std::size_t> query;   // [retrievers]
  std::vector<std::size_t> stream;  // [retrievers]
  std::int64_t keys_per_chunk = 0;
  bool trains_keys = true;
};

/// The shape that all retrievers of `config` have. \param width of hidden states
encoder_shape shape_of(const dual_encoder_config& config, bool trains_keys);

/// A dual encoder with its parameters in one flat vector.
struct dual_model {
  /// \param config with weights; validated
  dual_model(const dual_encoder_config& config, const recording_geometry& geometry,
             std::int64_t tokens_per_chunk);

  std::int64_t retrievers() const noexcept { return static_cast<std::int64_t>(config.retrievers.size()); }
  const float* of(std::int64_t retriever) const noexcept { return parameters.data() + retriever * map.count; }
  /// The artifact's form of parameters [retrievers, map.count].
  dual_encoder_config to_config(const std::vector<float>& values) const;

  dual_encoder_config config;
  model_taps taps;
  encoder_shape shape;
  parameter_map map;
  std::vector<float> parameters;  // [retrievers, map.count]
};

/// Some windows of one document.
/// \param windows indices into the example's positions
/// \throws format_error with index_keys_missing if an index-key lane ends before the windows' candidates
training_batch batch_of(const model_taps& taps, const example& from,
                        const std::vector<std::int64_t>& windows);

/// A batch in the form that encoders take.
class document_batch {
 public:
  void fill(const encoder_shape& shape, const model_taps& taps, const training_batch& batch);
  /// \param windows indices into the example's positions
  void fill(const encoder_shape& shape, const model_taps& taps, const example& from,
            const std::vector<std::int64_t>& windows);
  encoder_input<float> input(std::size_t retriever, const model_taps& taps) const noexcept;
  std::int64_t chunks() const noexcept { return chunks_; }

 private:
  std::int64_t windows_ = 0;
  std::int64_t chunks_ = 0;
  std::int64_t keys_per_chunk_ = 0;
  bool trains_keys_ = true;
  std::vector<std::int64_t> positions_;
  std::vector<std::vector<float>> hidden_;  // per query tap in use
  std::vector<std::vector<float>> keys_;    // per stream in use
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
