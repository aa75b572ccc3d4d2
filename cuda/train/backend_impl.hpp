// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/train.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/core/device_guard.hpp"
#include "cuda/train/kernels.hpp"
#include "cuda/train/layout.hpp"
#include "cuda/train/products.hpp"
#include "src/indexer/rope.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The engine's stream, or one of our own.
class work_stream {
 public:
  explicit work_stream(stream_ref engine) : stream_(engine.cuda()), own_(engine.is_host()) {
    if (own_) ask(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "training stream");
  }
  work_stream(const work_stream&) = delete;
  work_stream& operator=(const work_stream&) = delete;
  ~work_stream() {
    if (own_) cudaStreamDestroy(stream_);
  }
  cudaStream_t get() const noexcept { return stream_; }
  void wait(const char* purpose) const { ask(cudaStreamSynchronize(stream_), purpose); }

 private:
  cudaStream_t stream_;
  bool own_;
};

/// A block that grows as it must. What was in it is lost then.
class growing_block {
 public:
  growing_block(block_kind kind, const memory_resource& memory, const char* purpose)
      : kind_(kind), memory_(memory), purpose_(purpose) {}
  /// The stream must be idle if it grows. \throws admission_error; it is empty then and may be asked again
  void reserve(std::size_t bytes) {
    if (bytes <= block_.bytes()) return;
    block_ = memory_block();
    block_ = memory_block(kind_, memory_, bytes, purpose_);
  }
  bool holds(std::size_t bytes) const noexcept { return bytes <= block_.bytes(); }
  std::byte* data() const noexcept { return block_.as<std::byte>(); }

 private:
  block_kind kind_;
  memory_resource memory_;
  const char* purpose_;
  memory_block block_;
};

class device_backend final : public train::training_backend {
 public:
  device_backend(const train::backend_setup& setup, const training_options& options)
      : setup_(setup),
        options_(options),
        flat_(setup.shape),
        map_(setup.shape),
        bf16_(setup.shape.operands == train::precision::bf16),
        streams_(streams_of(setup, &place_)),
        guard_(std::in_place, options.device),
        stream_(options.stream),
        products_(bf16_, stream_.get()),
        state_(block_kind::device, options.device_memory, training_state_bytes(setup),
               "training backend: parameters"),
        work_(block_kind::device, options.device_memory, "training backend: activations"),
        staging_(block_kind::pinned, options.pinned_memory, "training backend: staging"),
        results_(block_kind::pinned, options.pinned_memory, "training backend: scores") {
    if (setup.shape.rope.dim != 0) frequencies_ = flashmemory::detail::yarn_frequencies(setup.shape.rope);
    ask(cudaMemsetAsync(state_.as<void>(), 0, state_.bytes(), stream_.get()), "training backend: parameters");
    stream_.wait("training backend: parameters");
    guard_.reset();
  }

  /// Waits: memory that the last update works on is given back.
  ~device_backend() override {
    const device_guard current(options_.device);
    cudaStreamSynchronize(stream_.get());
  }

  void write(const train::training_state& state) override {
    const device_guard current(options_.device);
    put(parameters(), state.parameters);
    put(first_moment(), state.first_moment);
    put(second_moment(), state.second_moment);
    updates_ = state.updates;
    if (bf16_) ask(launch_copies(update_of()), "training backend: copies");
    stream_.wait("training backend: parameters");
  }

  train::training_state read() const override {
    const device_guard current(options_.device);
    train::training_state state;
    state.parameters = get(parameters());
    state.first_moment = get(first_moment());
    state.second_moment = get(second_moment());
    state.updates = updates_;
    return state;
  }

  void clear_gradient() override {
    const device_guard current(options_.device);
    ask(cudaMemsetAsync(gradient(), 0, static_cast<std::size_t>(values()) * sizeof(float), stream_.get()),
        "training backend: gradient");
  }

  void forward(const train::training_batch& batch, float* scores) override;
  void backward(const train::training_batch& batch, const float* d_scores) override;
  double update(const train::optimiser_step& step) override;

 private:
  std::int64_t values() const noexcept { return setup_.retrievers() * map_.count; }
  float* parameters() const noexcept { return state_.as<float>(); }
  float* first_moment() const noexcept { return state_.as<float>() + values(); }
  float* second_moment() const noexcept { return state_.as<float>() + 2 * values(); }
  float* gradient() const noexcept { return state_.as<float>() + 3 * values(); }
  void* copies() const noexcept { return bf16_ ? state_.as<float>() + 4 * values() : nullptr; }

  void put(float* to, const std::vector<float>& flat) {
    std::vector<float> form(static_cast<std::size_t>(values()));
    for (std::int64_t r = 0; r < setup_.retrievers() && !flat.empty(); ++r) {
      to_device_form(setup_.shape, flat.data() + r * flat_.count, form.data() + r * map_.count);
    }
    ask(cudaMemcpyAsync(to, form.data(), form.size() * sizeof(float), cudaMemcpyHostToDevice, stream_.get()),
        "training backend: parameters");
    stream_.wait("training backend: parameters");
  }

  std::vector<float> get(const float* from) const {
    std::vector<float> form(static_cast<std::size_t>(values()));
    ask(cudaMemcpyAsync(form.data(), from, form.size() * sizeof(float), cudaMemcpyDeviceToHost,
                        stream_.get()),
        "training backend: parameters");
    stream_.wait("training backend: parameters");
    std::vector<float> flat(static_cast<std::size_t>(setup_.retrievers() * flat_.count));
    for (std::int64_t r = 0; r < setup_.retrievers(); ++r) {
      from_device_form(setup_.shape, form.data() + r * map_.count, flat.data() + r * flat_.count);
    }
    return flat;
  }

  update_call update_of() const noexcept {
    update_call call;
    call.retrievers = setup_.retrievers();
    call.parameter_count = map_.count;
    call.q_norm = map_.q_norm;
    call.matrices = map_.matrices;
    call.gradient = gradient();
    call.parameters = parameters();
    call.m = first_moment();
    call.v = second_moment();
    call.copies = copies();
    call.stream = stream_.get();
    return call;
  }

  /// A matrix of all retrievers' parameters as operand.
  matrix weights(std::int64_t at, std::int64_t stride, bool transposed) const noexcept {
    if (!bf16_) return {parameters() + at, stride, map_.count, transposed};
    return {static_cast<const std::byte*>(copies()) + at * 2, stride, map_.matrices, transposed};
  }
  matrix operand(std::size_t at, std::int64_t stride, std::int64_t batch,
                 bool transposed = false) const noexcept {
    return {work_.data() + at, stride, batch, transposed};
  }
  std::size_t operand_bytes(std::int64_t count) const noexcept {
    return static_cast<std::size_t>(count) * (bf16_ ? 2 : 4);
  }
  void multiply(std::int64_t m, std::int64_t n, std::int64_t k, matrix a, matrix b, float beta, float* c,
                std::int64_t c_stride, std::int64_t c_batch, std::int64_t batches) {
    products_.multiply(m, n, k, a, b, beta, c, c_stride, c_batch, static_cast<std::int32_t>(batches),
                       work_.data() + layout_->product);
  }

  /// Key inputs of a document in operand form, all that were recorded.
  struct kept_document {
    std::weak_ptr<const void> source;
    std::vector<memory_block> streams;  // [streams in use], each [padded keys, padded hidden]
    std::size_t bytes = 0;
  };
  /// Fills inputs_ from a document that was kept, or makes room to keep this one. \returns whether keys must be sent
  bool find_document(const train::training_batch& batch, const device_workspace& at);
  void prepare(const train::training_batch& batch);
  void upload(const train::training_batch& batch);
  void upload_bytes(std::size_t at, const std::byte* from, std::size_t bytes);

  train::backend_setup setup_;
  training_options options_;
  train::parameter_map flat_;
  device_parameters map_;
  bool bf16_;
  std::vector<std::int64_t> place_;  // [retrievers], of its stream among those in use
  std::vector<std::size_t> streams_;
  std::optional<device_guard> guard_;  // while members are made
  work_stream stream_;
  products products_;
  memory_block state_;  // parameters, moments, gradient, rounded copies
  growing_block work_, staging_, results_;
  flashmemory::detail::rope_frequencies frequencies_{};
  std::int64_t updates_ = 0;
  bool under_way_ = false;         // a forward pass
  std::list<kept_document> kept_;  // newest first
  std::size_t kept_bytes_ = 0;
  std::optional<kept_document> coming_;     // to be kept once it has been sent
  std::vector<std::byte*> inputs_;          // [streams in use], of the last batch
  std::vector<std::int64_t> sent_;          // [streams in use], rows to send
  std::optional<device_workspace> layout_;  // of the last batch
  train_call call_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
