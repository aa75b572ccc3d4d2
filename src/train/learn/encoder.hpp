// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/train/learn/backend.hpp>
#include <mutex>
#include <vector>

#include "src/indexer/rope.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

using train::encoder_shape;
using train::parameter_map;
using train::precision;

/// Copies an artifact's tensors into a flat vector, and back.
void read_parameters(const encoder_shape& shape, const retriever_weights& weights, float* parameters);
void write_parameters(const encoder_shape& shape, const float* parameters, retriever_weights& weights);

/// What one retriever sees of one document: the sampled windows, and the keys of its complete chunks.
template <class Real>
struct encoder_input {
  std::int64_t windows = 0;
  const Real* hidden = nullptr;             ///< [windows, hidden]
  const std::int64_t* positions = nullptr;  ///< [windows]
  std::int64_t chunks = 0;
  std::int64_t keys_per_chunk = 0;
  const Real* key_inputs = nullptr;  ///< [chunks * keys_per_chunk, hidden]; else null
  const Real* keys = nullptr;        ///< [chunks * keys_per_chunk, 128] if they are not trained
};

/// Buffers that tasks borrow, so that a steady state allocates nothing.
template <class Real>
class scratch_pool {
 public:
  std::vector<Real> take(std::size_t size);
  void give(std::vector<Real> buffer);

 private:
  std::mutex mutex_;
  std::vector<std::vector<Real>> free_;
};

/// Forward and backward pass of one retriever over one document, GEMM-shaped: all keys against all heads of
/// all windows. Holds the activations of the last forward().
template <class Real>
class encoder {
 public:
  explicit encoder(const encoder_shape& shape);

  /// Scores every chunk for every window: max over the chunk's keys of the logit.
  void forward(const Real* parameters, const encoder_input<Real>& input, const thread_hook& threads);

  /// [chunks, windows] of the last forward().
  const std::vector<Real>& scores() const noexcept { return scores_; }

  /// Adds the gradient of sum(d_scores * scores) to `gradient`; d_scores [chunks, windows]. The maximum passes
  /// it to the key that reached it.
  void backward(const Real* parameters, const encoder_input<Real>& input, const Real* d_scores,
                Real* gradient, const thread_hook& threads);

 private:
  void encode_queries(const Real* parameters, const encoder_input<Real>& input, const thread_hook& threads);
  void backward_encoder(const Real* parameters, const encoder_input<Real>& input, Real* gradient,
                        const thread_hook& threads);
  /// What products read instead of `from`: `from`, or its rounded copy in `to`.
  const Real* operand_of(const Real* from, std::int64_t count, std::vector<Real>& to) const;
  /// Rounds a buffer of our own that products read.
  void round_operand(std::vector<Real>& values) const;
  void turn(Real* head, std::int64_t position, bool back) const noexcept;

  encoder_shape shape_;
  parameter_map map_;
  flashmemory::detail::rope_frequencies frequencies_{};
  std::vector<Real> low_rank_;  // [windows, rank], before the norm
  std::vector<Real> root_;      // [windows]
  std::vector<Real> normed_;    // [windows, rank]
  std::vector<Real> flat_;      // [windows, heads * 128]
  std::vector<Real> queries_;   // [heads, windows, 128], transformed
  std::vector<Real> gates_;     // [heads, windows], scaled
  std::vector<Real> key_map_;   // [128, hidden], wk transformed
  std::vector<Real> keys_;      // [keys, 128]
  std::vector<Real> scores_;    // [chunks, windows]
  std::vector<std::int32_t> where_;
  std::vector<Real> wq_a_, wq_b_, weights_proj_, hidden_,
      key_inputs_;  // rounded copies, if operands are bf16
  std::vector<Real> d_queries_, d_gates_, d_keys_, pair_, d_low_rank_;
  scratch_pool<Real> scratch_;
};

extern template class encoder<float>;
extern template class encoder<double>;

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
