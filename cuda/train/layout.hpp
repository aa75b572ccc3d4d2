// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/train.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Matrices on the device have rows of whole 16 bytes of either operand type; what is added is zero and stays so.
constexpr std::int64_t padded(std::int64_t count, std::int64_t to = 8) noexcept {
  return (count + to - 1) / to * to;
}

/// Where one retriever's tensors lie on the device, in values. wq_a and weights_proj read the same hidden states
/// and are one matrix, `first`.
struct device_parameters {
  explicit device_parameters(const train::encoder_shape& shape) noexcept;
  std::int64_t hidden = 0, rank = 0, heads = 0;  ///< padded
  std::int64_t first = 0;                        ///< [rank + heads, hidden]
  std::int64_t wq_b = 0;                         ///< [true heads * 128, rank]
  std::int64_t matrices = 0;                     ///< end of what is an operand as it is; bf16 copies end here
  std::int64_t wk = 0;                           ///< [128, hidden]
  std::int64_t q_norm = 0;                       ///< [rank]; from here on nothing is decayed
  std::int64_t offset = 0;                       ///< scalar
  std::int64_t count = 0;

  std::int64_t first_rows() const noexcept { return rank + heads; }
};

/// Moves one retriever between the flat vector of train::parameter_map and the device's padded form.
void to_device_form(const train::encoder_shape& shape, const float* flat, float* device);
void from_device_form(const train::encoder_shape& shape, const float* device, float* flat);

/// Bytes from a workspace's beginning to each buffer. T = operand type, R = retrievers, S = index-key lanes in use,
/// W = padded windows, K = padded keys, H = heads.
struct device_workspace {
  device_workspace(const train::backend_setup& setup, std::int64_t windows, std::int64_t chunks,
                   std::size_t tile_bytes);
  std::int64_t windows = 0, keys = 0;  ///< W, K
  std::int64_t tile_chunks = 0;        ///< whose logits per head exist at a time
  std::int64_t join_chunks = 0;        ///< whose gradients per window exist at a time
  std::size_t hidden = 0;              ///< T [R, W, hidden]
  std::size_t inputs = 0;              ///< T [S, K, hidden]
  std::size_t first = 0;               ///< f32 [R, W, rank + heads], product of the hidden states
  std::size_t root = 0;                ///< f32 [R, W]
  std::size_t gates = 0;               ///< f32 [R, H, W], scaled
  std::size_t normed = 0;              ///< T [R, W, rank]
  std::size_t flat = 0;                ///< f32 [R, W, H * 128]
  std::size_t queries = 0;             ///< T [R, H, W, 128], transformed
  std::size_t key_map = 0;             ///< T [R, 128, hidden], wk transformed
  std::size_t keys_at = 0;             ///< T [R, K, 128], as the forward pass saw them
  std::size_t scores = 0;              ///< f32 [R, chunks, true windows]; d_scores in the backward pass
  std::size_t where = 0;               ///< i32, same shape: the best key of the chunk
  std::size_t pairs = 0;    ///< f32 [R, chunks, true windows, H]: d score * gate where the relu is open
  std::size_t d_flat = 0;   ///< T [R, W, H * 128]
  std::size_t d_first = 0;  ///< T [R, W, rank + heads]
  std::size_t d_low = 0;    ///< f32 [R, W, rank]
  std::size_t d_keys = 0;   ///< T [R, K, 128]
  std::size_t d_map = 0;    ///< f32 [R, 128, hidden]
  std::size_t turns = 0;    ///< f32 [true windows, 32, 2], cosine and sine
  std::size_t partial = 0;  ///< f64, sums of squares
  std::size_t tile = 0;     ///< raw uploads, unrounded keys, logits per head, gradients per window
  std::size_t product = 0;  ///< cuBLASLt's
  std::size_t bytes = 0;
};

inline constexpr std::size_t product_bytes = std::size_t{32} << 20;
inline constexpr std::int64_t partial_sums = 512;

/// The index-key lanes that retrievers read, without repetition, and each retriever's place among them.
std::vector<std::size_t> streams_of(const train::backend_setup& setup,
                                    std::vector<std::int64_t>* place = nullptr);

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
