// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/learn/backend.hpp>
#include <flashmemory/train/learn/loss.hpp>
#include <flashmemory/train/learn/optimiser.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <functional>
#include <memory>
#include <string>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// What one training run does.
struct trainer_options {
  label_rule labels;
  window_options windows;
  loss_options loss;
  optimiser_options optimiser;
  std::int64_t layer_steps = 400;  ///< first, every retriever by the loss of its own scores
  std::int64_t ensemble_steps =
      400;                   ///< then all together, by the loss of the best retriever's score per chunk
  double ensemble_rate = 1;  ///< learning rate of the second stage, as a share of the first's
  std::int64_t tokens_per_step = 16384;  ///< documents are drawn until they have so many tokens together
  std::int64_t windows_per_document = 96;
  double needing_share =
      0.75;  ///< of the windows drawn, those that need something old, where there are so many
  double window_weight_free = 1;  ///< weight of a window that needs nothing old
  std::uint64_t seed = 1;
  std::string start;  ///< what it starts from, in words, for the artifact's record; kept in checkpoints
  std::size_t memory_budget = std::size_t{2} << 30;  ///< bytes of documents kept between steps
  thread_hook threads = default_threads();           ///< results do not depend on it
  precision operands = precision::f32;               ///< of matrix products
  backend_factory backend;                           ///< where the arithmetic is done; empty = on the CPU
};

/// \throws argument_error naming the field that cannot work
FLASHMEMORY_API void validate(const trainer_options& options);

/// What a step did.
struct step_report {
  std::int64_t step = 0;  ///< steps done, this one included
  std::int64_t steps = 0;
  bool ensemble = false;  ///< which stage
  double loss = 0;
  double rate = 0;
  double gradient_norm = 0;  ///< before clipping
  double recall = 0;         ///< of positives among the best tenth of complete chunks, of this step's windows
  double kept = 0;           ///< share of candidates with a logit above 0
  double seconds = 0;        ///< of the step
  double gflops = 0;         ///< multiply-adds of its GEMMs, as 2 flop, per second / 1e9
};

/// Trains a dual encoder from recordings alone, on the CPU or where trainer_options::backend says; parameters are
/// f32. A step is GEMM-shaped: all keys of a document against all heads of its sampled windows. Keys pass e4m3
/// quantisation, and queries the bf16 rounding that the artifact states, in the forward pass; gradients pass straight
/// through both.
///
/// Deterministic: the same source, start, options and steps give the same bits on the same machine, whatever the
/// number of threads (on the CPU with OpenBLAS, which is kept on the calling thread meanwhile; another BLAS must do so
/// itself), and whether or not the run was interrupted. Checkpoints do not depend on the backend, results do.
///
/// Memory: memory_budget for documents, one more document while it is read, and the backend's. The CPU's: the
/// activations of one document, 4 x keys x (hidden + 2 x 128) bytes per retriever and stream.
class FLASHMEMORY_API trainer {
 public:
  /// \param source  must outlive the trainer
  /// \param start   weights to start from, e.g. of start_indexer() or an artifact to go on with
  /// \throws argument_error naming what does not fit, also if no training document has a window to learn from
  trainer(const document_source& source, dual_encoder_config start, trainer_options options);
  ~trainer();
  trainer(const trainer&) = delete;
  trainer& operator=(const trainer&) = delete;

  /// One step. \throws error with not_finite naming the document if loss or gradient is NaN or Inf: parameters
  /// are then as before the step; what document_source::load() throws
  step_report step();

  /// Whether all steps have been made.
  bool done() const noexcept;
  /// Steps made so far.
  std::int64_t steps_done() const noexcept;

  /// Steps until done(); `progress` may stop it by returning false. With a path, saves every `every` steps, and
  /// at the end or when stopped.
  void run(const std::function<bool(const step_report&)>& progress, const std::string& checkpoint = {},
           std::int64_t every = 100);

  /// Writes everything that the rest of the run depends on, atomically. \throws io_failure
  void save_checkpoint(const std::string& path) const;
  /// Goes on where save_checkpoint() stood. \throws format_error naming what is damaged or another: recordings,
  /// options, architecture; io_failure. The trainer is then as before
  void load_checkpoint(const std::string& path);

  /// The dual encoder as it stands.
  dual_encoder_config config() const;

  /// Options as JSON, for artifacts and reports; threads and memory are not among them.
  std::string describe() const;

  /// What the run has started from: the options', after load_checkpoint() that of the run which made the checkpoint.
  /// Empty = not stated.
  const std::string& start() const noexcept;

  /// Most bytes of documents that were held at a time.
  std::size_t peak_document_bytes() const noexcept;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
