// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/select/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The key side of a dual encoder in device memory: one encoder for each lane that it makes.
class key_encoders {
 public:
  key_encoders() = default;
  /// Copies the weights; synchronises. \throws admission_error, error with cuda_error
  key_encoders(const dual_encoder_config& config, const memory_resource& memory);

  bool empty() const noexcept { return weights_.empty(); }
  key_encoder of(std::int32_t lane, unsigned long long* nan_keys) const noexcept;

 private:
  memory_block block_;
  std::vector<const float*> weights_;  ///< per lane
  key_encoder shape_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
