// SPDX-License-Identifier: MIT
#include "cuda/select/dual_key_encoders.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

dual_key_encoders::dual_key_encoders(const dual_encoder_config& config, const memory_resource& memory) {
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

key_encoder dual_key_encoders::of(std::int32_t lane, unsigned long long* nan_keys) const noexcept {
  key_encoder e = shape_;
  e.weights = weights_[static_cast<std::size_t>(lane)];
  e.nan_keys = nan_keys;
  return e;
}

cudaError_t dual_key_encoders::encode(std::int32_t lane, const kept_rows& kept, const row_part& part,
                                      const row_tensor& from, std::int64_t first_key, std::int64_t count,
                                      std::byte* out, unsigned long long* nan_keys,
                                      cudaStream_t stream) noexcept {
  return launch_encode_keys(of(lane, nan_keys), kept, part, from, first_key, count, out, stream);
}

cudaError_t dual_key_encoders::encode_step(std::int32_t lane, const kept_rows& kept,
                                           const std::int64_t* places, const std::int64_t* positions,
                                           const append_target* targets, std::int64_t rows,
                                           std::int32_t per_row, const key_page& page,
                                           unsigned long long* nan_keys, cudaStream_t stream) noexcept {
  return launch_encode_step_keys(of(lane, nan_keys), kept, places, positions, targets, rows, per_row, page,
                                 stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
