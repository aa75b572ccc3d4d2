// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/select/key_encoders.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Those of a dual encoder: one for each lane that it makes.
class dual_key_encoders final : public key_encoders {
 public:
  /// Copies the weights; synchronises. \throws admission_error, error with cuda_error
  dual_key_encoders(const dual_encoder_config& config, const memory_resource& memory);

  cudaError_t encode(std::int32_t lane, const kept_rows& kept, const row_part& part, const row_tensor& from,
                     std::int64_t first_key, std::int64_t count, std::byte* out, unsigned long long* nan_keys,
                     cudaStream_t stream) noexcept override;
  cudaError_t encode_step(std::int32_t lane, const kept_rows& kept, const std::int64_t* places,
                          const std::int64_t* positions, const append_target* targets, std::int64_t rows,
                          std::int32_t per_row, const key_page& page, unsigned long long* nan_keys,
                          cudaStream_t stream) noexcept override;

 private:
  key_encoder of(std::int32_t lane, unsigned long long* nan_keys) const noexcept;

  memory_block block_;
  std::vector<const float*> weights_;  ///< per lane
  key_encoder shape_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
