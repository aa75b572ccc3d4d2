// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/device_indexer.hpp>
#include <flashmemory/cuda/query_encoder.hpp>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <optional>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/select/key_encoders.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The library's dual encoder as a device_indexer: queries of all due sequences encoded in one call, scored in one launch
/// over the index keys in the store's fast tier.
class device_dual_encoder final : public library_indexer {
 public:
  /// \throws as query_encoder's constructor, once reserve() makes it
  device_dual_encoder(const dual_encoder_config& config, dtype weights);

  std::unique_ptr<key_encoders> make_encoders(const memory_resource& memory) const override;
  void reserve(const device_indexer_capacity& capacity) override;
  std::size_t table_bytes(std::int32_t max_sequences) const noexcept override;
  status fill_table(const device_scoring& call, fault* error) noexcept override;
  status score(const device_scoring& call, stream_ref stream, fault* error) noexcept override;

 private:
  void load_kernels();

  dual_encoder_config config_;  ///< without its weights once they are on the device
  dtype weights_;
  std::int32_t retrievers_;
  std::vector<std::int32_t> tap_of_;  ///< per retriever
  bool fused_;                        ///< scoring itself makes chunk scores
  device_indexer_capacity capacity_;
  std::optional<query_encoder> encoder_;
  memory_block scratch_, logits_block_;
  encoded_queries encoded_;
  workspace encode_scratch_;
  float* logits_ = nullptr;  ///< [retrievers, logit_stride_], only if not fused
  std::int64_t logit_stride_ = 0;
  std::vector<const_tensor<2>> hidden_;  ///< per retriever
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
