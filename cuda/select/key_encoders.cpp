// SPDX-License-Identifier: MIT
#include "cuda/select/key_encoders.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

key_encoders::key_encoders(const dual_encoder_config& config, const memory_resource& memory) {
  shape_.hidden = config.hidden;
  shape_.tokens_per_key = config.tokens_per_key;
  shape_.window = config.key_window;
  shape_.scale_floor = config.key_scale_floor;
  std::size_t lanes = 0;
  for (const auto& r : config.retrievers) lanes += !r.wk.empty();
  if (lanes == 0) return;
  const std::size_t floats = static_cast<std::size_t>(config.hidden) * 128;
  block_ = memory_block(block_kind::device, memory, lanes * floats * sizeof(float), "key encoder");
  std::vector<float> transposed(floats);
  float* next = block_.as<float>();
  for (const auto& r : config.retrievers) {
    if (r.wk.empty()) continue;
    for (std::int64_t row = 0; row < 128; ++row)
      for (std::int64_t i = 0; i < config.hidden; ++i)
        transposed[static_cast<std::size_t>(i * 128 + row)] =
            r.wk[static_cast<std::size_t>(row * config.hidden + i)];
    ask(cudaMemcpy(next, transposed.data(), floats * sizeof(float), cudaMemcpyHostToDevice), "key encoder");
    weights_.push_back(next);
    next += floats;
  }
  ask(cudaDeviceSynchronize(), "key encoder");
}

key_encoder key_encoders::of(std::int32_t lane, unsigned long long* nan_keys) const noexcept {
  key_encoder e = shape_;
  e.weights = weights_[static_cast<std::size_t>(lane)];
  e.nan_keys = nan_keys;
  return e;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
