// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/train/learn/optimiser.hpp>
#include <flashmemory/train/record/document.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// What the operands of matrix products are rounded to. Sums, parameters, moments and gradients are f32 either way.
enum class precision : std::int32_t { f32, bf16 };

/// What all retrievers of a model share, and how their forward pass rounds.
struct encoder_shape {
  std::int64_t hidden = 0;
  std::int64_t rank = 0;
  std::int64_t heads = 0;
  bool trains_keys = true;  ///< there is a wk; else keys come as they are
  double q_norm_eps = 1e-6;
  bool bf16_rounding = false;  ///< of queries, as the artifact says; gradients pass straight through
  bool quantise_keys = true;   ///< e4m3 in the loop, straight through
  double key_scale_floor = 1e-4;
  rope_options rope;
  precision operands = precision::f32;
};

/// Where one retriever's tensors lie in its flat parameter vector.
struct FLASHMEMORY_API parameter_map {
  /// Of retrievers of that shape.
  explicit parameter_map(const encoder_shape& shape) noexcept;
  std::int64_t wq_a = 0;          ///< [rank, hidden]
  std::int64_t wq_b = 0;          ///< [heads * 128, rank]
  std::int64_t weights_proj = 0;  ///< [heads, hidden]
  std::int64_t wk = 0;            ///< [128, hidden]; no elements without trained keys
  std::int64_t q_norm = 0;        ///< [rank]; from here on nothing is decayed
  std::int64_t offset = 0;        ///< scalar
  std::int64_t count = 0;         ///< elements of all tensors
};

/// Some windows of one document, as it was recorded; host memory that is borrowed for the call.
struct training_batch {
  std::vector<std::int64_t> rows;       ///< [windows], of every query tap
  std::vector<std::int64_t> positions;  ///< [windows], of the tokens that ask
  std::int64_t chunks = 0;              ///< the first ones of the document; their keys are all there
  const std::vector<row_matrix>* queries = nullptr;  ///< per recorded tap
  const std::vector<document_keys>* keys = nullptr;  ///< per recorded stream

  /// Owns the rows, which do not change as long as it lives: a backend may keep what it made of them; may be null.
  std::shared_ptr<const void> source;
  /// How many windows ask.
  std::int64_t windows() const noexcept { return static_cast<std::int64_t>(rows.size()); }
};

/// What a backend is made for.
struct backend_setup {
  encoder_shape shape;
  std::vector<std::size_t> query;   ///< [retrievers], the recorded tap that each one reads
  std::vector<std::size_t> stream;  ///< [retrievers], the recorded index-key lane
  std::int64_t keys_per_chunk = 0;
  thread_hook threads;  ///< of the host, for what is done there

  /// Dual encoders that are trained side by side.
  std::int64_t retrievers() const noexcept { return static_cast<std::int64_t>(query.size()); }
};

/// All that training changes. Parameters and moments: [retrievers, parameter_map::count]; moments may be empty
/// before the first update.
struct training_state {
  std::vector<float> parameters;
  std::vector<float> first_moment;
  std::vector<float> second_moment;
  std::int64_t updates = 0;
};

/// One step of AdamW.
struct optimiser_step {
  optimiser_options options;
  double rate = 0;            ///< of this step
  double gradient_share = 1;  ///< the collected gradient is multiplied by it first
};

/// Where the arithmetic of training is done: forward pass, backward pass and optimiser of all retrievers.
/// Parameters, moments and gradients live there. The trainer keeps sampling, labels, losses, schedule and files.
///
/// Calls come in order from one thread: per step clear_gradient(), per document forward() and backward(), then
/// update(). Results are in host memory when a call returns. After an exception parameters, moments and number of
/// updates are as before the call, and the next step may be tried.
class FLASHMEMORY_API training_backend {
 public:
  virtual ~training_backend() = default;
  training_backend(const training_backend&) = delete;
  training_backend& operator=(const training_backend&) = delete;

  /// Takes `state`, whose extents fit, as its own.
  virtual void write(const training_state& state) = 0;
  /// What is to be trained on or saved.
  virtual training_state read() const = 0;

  /// Forgets the gradient collected so far.
  virtual void clear_gradient() = 0;
  /// Scores every chunk for every window: the largest logit of the chunk's keys.
  /// \param[out] scores  [retrievers, chunks, windows]
  virtual void forward(const training_batch& batch, float* scores) = 0;
  /// Adds the gradient of sum(d_scores * scores) of the last forward(), whose batch is still there. A maximum
  /// passes it to the key that reached it, the first one of several.
  /// \param[in] d_scores  [retrievers, chunks, windows]
  virtual void backward(const training_batch& batch, const float* d_scores) = 0;
  /// \returns the norm of the gradient before it was clipped; not finite: nothing was changed
  virtual double update(const optimiser_step& step) = 0;

 protected:
  training_backend() = default;
};

/// Makes a trainer's backend. \throws what it cannot do, as typed errors
using backend_factory = std::function<std::unique_ptr<training_backend>(const backend_setup&)>;

/// The one that runs on the CPU, in host memory, and what an empty factory means. Matrix products are a BLAS's.
FLASHMEMORY_API std::unique_ptr<training_backend> make_cpu_backend(const backend_setup& setup);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
