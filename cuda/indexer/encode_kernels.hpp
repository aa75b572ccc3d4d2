// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

inline constexpr int max_retrievers = 16;

/// Where the hidden states of one call are.
struct hidden_rows {
  const void* data[max_retrievers] = {};
  std::int64_t stride[max_retrievers] = {};  ///< elements
  dtype type[max_retrievers] = {};
};

/// An f32 matrix operand, as the product wants it: one f32 row, or the row's bf16 part and what that leaves, also
/// in bf16, as two rows `rows` apart. [retrievers, capacity, width].
struct operand {
  void* data = nullptr;
  dtype type = dtype::bf16;
  std::int32_t parts = 1;
  std::int32_t rows = 0, capacity = 0, width = 0;
};

/// hidden -> operand of the first product.
cudaError_t launch_gather(const hidden_rows& hidden, std::int32_t retrievers, const operand& to,
                          cudaStream_t stream) noexcept;

/// Result of the first product, [retrievers, capacity, rank + heads] f32 -> RMS-normed operand of the second one, and
/// head gates [retrievers, rows, heads] with their scale factors.
cudaError_t launch_normalise(const float* product, const operand& from, const float* norm, float eps,
                             std::int32_t retrievers, std::int32_t heads, float gate_scale, const operand& to,
                             float* gates, cudaStream_t stream) noexcept;

/// What the last step needs beside the second product.
struct finish_call {
  const float* product = nullptr;  ///< [retrievers, capacity, heads * 128]
  operand from;                    ///< of the second product
  const std::int64_t* positions = nullptr;
  const float* frequencies = nullptr;  ///< [32], or null without RoPE
  std::int64_t max_positions = 0;
  std::int32_t retrievers = 0, heads = 0;
  bool bf16_rounding = false;
  std::byte* queries = nullptr;
  float* weights = nullptr;  ///< gates in, gates times scales out
  float* full_precision = nullptr;
};

/// Rounding, RoPE, Hadamard transform, quantisation.
cudaError_t launch_finish(const finish_call& call, cudaStream_t stream) noexcept;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
