// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>
#include <utility>

#include "cuda/train/backend_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr std::int64_t dim = index_key_dim;

}  // namespace

void device_backend::forward(const train::training_batch& batch, float* scores) {
  const char* const purpose = "training backend: forward pass";
  const device_guard current(options_.device);
  if (std::exchange(under_way_, true)) stream_.wait(purpose);  // one that failed may still read the staging
  prepare(batch);
  upload(batch);
  const device_workspace& at = *layout_;
  const train_call& c = call_;
  const std::int64_t width = c.true_heads * dim, columns = c.true_heads * c.windows;
  if (setup_.shape.trains_keys) {
    ask(launch_key_map(c), purpose);
    for (std::int64_t r = 0; r < c.retrievers; ++r) {
      const matrix inputs{inputs_[static_cast<std::size_t>(place_[static_cast<std::size_t>(r)])], c.hidden};
      const matrix key_map = operand(at.key_map + operand_bytes(r * dim * c.hidden), c.hidden, 0, true);
      float* const raw = bf16_ ? c.tile : static_cast<float*>(c.keys_at) + r * c.keys * dim;
      multiply(c.keys, dim, c.hidden, inputs, key_map, 0, raw, dim, 0, 1);
      ask(launch_quantise(c, raw, r), purpose);
    }
  }
  const std::int64_t first_rows = map_.first_rows();
  multiply(c.windows, first_rows, c.hidden, operand(at.hidden, c.hidden, c.windows * c.hidden),
           weights(map_.first, c.hidden, true), 0, c.first, first_rows, c.windows * first_rows, c.retrievers);
  ask(launch_normalise(c), purpose);
  multiply(c.windows, width, c.rank, operand(at.normed, c.rank, c.windows * c.rank),
           weights(map_.wq_b, c.rank, true), 0, c.flat, width, c.windows * width, c.retrievers);
  ask(launch_finish(c), purpose);
  for (std::int64_t chunk = 0; chunk < c.chunks; chunk += at.tile_chunks) {
    const std::int64_t count = std::min(at.tile_chunks, c.chunks - chunk);
    const std::int64_t rows = count * c.keys_per_chunk;
    multiply(rows, columns, dim,
             operand(at.keys_at + operand_bytes(chunk * c.keys_per_chunk * dim), dim, c.keys * dim),
             operand(at.queries, dim, columns * dim, true), 0, c.tile, columns, rows * columns, c.retrievers);
    ask(launch_reduce(c, chunk, count), purpose);
  }
  const auto pairs = static_cast<std::size_t>(c.retrievers * c.chunks * c.true_windows);
  ask(cudaMemcpyAsync(results_.data(), c.scores, pairs * sizeof(float), cudaMemcpyDeviceToHost, c.stream),
      purpose);
  stream_.wait(purpose);
  under_way_ = false;
  std::memcpy(scores, results_.data(), pairs * sizeof(float));
}

void device_backend::backward(const train::training_batch&, const float* d_scores) {
  const char* const purpose = "training backend: backward pass";
  const device_guard current(options_.device);
  if (!layout_) throw error(status::bad_argument, "training backend: backward() without forward()");
  const device_workspace& at = *layout_;
  const train_call& c = call_;
  const std::int64_t width = c.true_heads * dim, first_rows = map_.first_rows();
  const auto pairs = static_cast<std::size_t>(c.retrievers * c.chunks * c.true_windows);
  std::memcpy(results_.data(), d_scores, pairs * sizeof(float));
  ask(cudaMemcpyAsync(c.scores, results_.data(), pairs * sizeof(float), cudaMemcpyHostToDevice, c.stream),
      purpose);
  ask(launch_offset_gradient(c), purpose);
  ask(launch_query_gradient(c), purpose);
  if (setup_.shape.trains_keys) {
    ask(launch_clear_key_tail(c), purpose);
    for (std::int64_t chunk = 0; chunk < c.chunks; chunk += at.join_chunks) {
      ask(launch_key_gradient(c, chunk, std::min(at.join_chunks, c.chunks - chunk)), purpose);
    }
    for (std::int64_t r = 0; r < c.retrievers; ++r) {
      multiply(dim, c.hidden, c.keys, operand(at.d_keys + operand_bytes(r * c.keys * dim), dim, 0, true),
               matrix{inputs_[static_cast<std::size_t>(place_[static_cast<std::size_t>(r)])], c.hidden}, 0,
               c.d_map + r * dim * c.hidden, c.hidden, 0, 1);
    }
    ask(launch_map_gradient(c), purpose);
  }
  multiply(width, c.rank, c.windows, operand(at.d_flat, width, c.windows * width, true),
           operand(at.normed, c.rank, c.windows * c.rank), 1, c.gradient + map_.wq_b, c.rank, map_.count,
           c.retrievers);
  multiply(c.windows, c.rank, width, operand(at.d_flat, width, c.windows * width),
           weights(map_.wq_b, c.rank, false), 0, c.d_low, c.rank, c.windows * c.rank, c.retrievers);
  ask(launch_norm_gradient(c), purpose);
  multiply(first_rows, c.hidden, c.windows, operand(at.d_first, first_rows, c.windows * first_rows, true),
           operand(at.hidden, c.hidden, c.windows * c.hidden), 1, c.gradient + map_.first, c.hidden,
           map_.count, c.retrievers);
}

double device_backend::update(const train::optimiser_step& step) {
  const char* const purpose = "training backend: optimiser";
  const device_guard current(options_.device);
  work_.reserve(product_bytes);  // a step without documents
  const train::optimiser_options& o = step.options;
  update_call call = update_of();
  call.share = static_cast<float>(step.gradient_share);
  auto* const partial = reinterpret_cast<double*>(work_.data() + (layout_ ? layout_->partial : 0));
  ask(launch_square_sum(call, partial), purpose);
  double squares = 0;
  ask(cudaMemcpyAsync(&squares, partial, sizeof squares, cudaMemcpyDeviceToHost, call.stream), purpose);
  stream_.wait(purpose);
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) return norm;
  const double limit = o.clip * static_cast<double>(call.retrievers);
  const auto updates = static_cast<double>(updates_ + 1);
  call.scale = static_cast<float>(o.clip > 0 && norm > limit ? limit / norm : 1.0);
  call.rate = static_cast<float>(step.rate);
  call.beta1 = static_cast<float>(o.beta1);
  call.beta2 = static_cast<float>(o.beta2);
  call.eps = static_cast<float>(o.eps);
  call.decay = static_cast<float>(o.decay);
  call.correction1 = static_cast<float>(1 - std::pow(o.beta1, updates));
  call.correction2 = static_cast<float>(1 - std::pow(o.beta2, updates));
  ask(launch_adamw(call), purpose);
  ++updates_;
  return norm;
}

}  // namespace detail

namespace {

void check(const train::backend_setup& setup, const training_options& options) {
  const auto need = [](bool good, const char* what, std::int64_t value) {
    if (!good)
      throw argument_error(status::bad_argument, fmt::format("training backend: {} is {}", what, value));
  };
  const train::encoder_shape& s = setup.shape;
  need(setup.retrievers() > 0 && setup.retrievers() <= 65535, "the number of retrievers", setup.retrievers());
  need(setup.stream.size() == setup.query.size(), "the number of index-key lanes",
       static_cast<std::int64_t>(setup.stream.size()));
  need(s.hidden > 0, "hidden", s.hidden);
  need(s.rank > 0, "rank", s.rank);
  need(s.heads > 0, "heads", s.heads);
  need(setup.keys_per_chunk > 0, "keys_per_chunk", setup.keys_per_chunk);
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) cudaGetLastError();
  if (code != cudaSuccess || options.device < 0 || options.device >= count) {
    throw error(
        status::unsupported,
        fmt::format("training backend: there is no device {}: {}", options.device,
                    code != cudaSuccess ? cudaGetErrorString(code) : fmt::format("{} in all", count)));
  }
}

}  // namespace

train::backend_factory training_on_device(const training_options& options) {
  return [options](const train::backend_setup& setup) -> std::unique_ptr<train::training_backend> {
    check(setup, options);
    return std::make_unique<detail::device_backend>(setup, options);
  };
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
