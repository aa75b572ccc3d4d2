// SPDX-License-Identifier: MIT
#include <algorithm>
#include <deque>
#include <flashmemory/train/learn/backend.hpp>
#include <utility>

#include "src/train/learn/encoder.hpp"
#include "src/train/learn/gemm.hpp"
#include "src/train/learn/model.hpp"
#include "src/train/learn/optimiser.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

class cpu_backend final : public training_backend {
 public:
  explicit cpu_backend(const backend_setup& setup) : setup_(setup), map_(setup.shape) {
    taps_.query = setup.query;
    taps_.stream = setup.stream;
    taps_.keys_per_chunk = setup.keys_per_chunk;
    taps_.trains_keys = setup.shape.trains_keys;
    for (std::int64_t r = 0; r < setup.retrievers(); ++r) encoders_.emplace_back(setup.shape);
  }

  void write(const training_state& state) override {
    training_state taken = state;
    gradient_.assign(taken.parameters.size(), 0.0f);
    parameters_ = std::move(taken.parameters);
    optimiser_.m = std::move(taken.first_moment);
    optimiser_.v = std::move(taken.second_moment);
    optimiser_.updates = taken.updates;
  }

  training_state read() const override {
    return {parameters_, optimiser_.m, optimiser_.v, optimiser_.updates};
  }

  void clear_gradient() override { std::fill(gradient_.begin(), gradient_.end(), 0.0f); }

  void forward(const training_batch& batch, float* scores) override {
    const detail::serial_blas one_thread;
    documents_.fill(setup_.shape, taps_, batch);
    for (std::size_t r = 0; r < encoders_.size(); ++r) {
      encoders_[r].forward(parameters_.data() + at(r), documents_.input(r, taps_), setup_.threads);
      scores = std::copy(encoders_[r].scores().begin(), encoders_[r].scores().end(), scores);
    }
  }

  void backward(const training_batch&, const float* d_scores) override {
    const detail::serial_blas one_thread;
    for (std::size_t r = 0; r < encoders_.size(); ++r) {
      encoders_[r].backward(parameters_.data() + at(r), documents_.input(r, taps_), d_scores,
                            gradient_.data() + at(r), setup_.threads);
      d_scores += encoders_[r].scores().size();
    }
  }

  double update(const optimiser_step& step) override {
    const auto share = static_cast<float>(step.gradient_share);
    for (float& g : gradient_) g *= share;
    return optimiser_.update(step.options, map_, step.rate, gradient_, parameters_);
  }

 private:
  std::int64_t at(std::size_t retriever) const noexcept {
    return static_cast<std::int64_t>(retriever) * map_.count;
  }

  backend_setup setup_;
  parameter_map map_;
  detail::model_taps taps_;
  std::vector<float> parameters_, gradient_;  // [retrievers, map.count]
  detail::adamw_state optimiser_;
  detail::document_batch documents_;
  std::deque<detail::encoder<float>> encoders_;  // [retrievers]
};

}  // namespace

std::unique_ptr<training_backend> make_cpu_backend(const backend_setup& setup) {
  return std::make_unique<cpu_backend>(setup);
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
