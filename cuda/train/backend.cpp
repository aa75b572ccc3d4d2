// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "core/blocks.hpp"
#include "core/device_guard.hpp"
#include "core/parallel.hpp"
#include "indexer/rope.hpp"
#include "train/kernels.hpp"
#include "train/layout.hpp"
#include "train/products.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace {

using detail::ask;
using detail::matrix;
using detail::memory_block;

constexpr std::int64_t dim = index_key_dim;

/// The engine's stream, or one of our own.
class work_stream {
 public:
  explicit work_stream(stream_ref engine) : stream_(engine.cuda()), own_(engine.is_host()) {
    if (own_) ask(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "training stream");
  }
  work_stream(const work_stream&) = delete;
  work_stream& operator=(const work_stream&) = delete;
  ~work_stream() {
    cudaStreamSynchronize(stream_);  // memory that it works on goes next
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
  growing_block(detail::block_kind kind, const memory_resource& memory, const char* purpose)
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
  detail::block_kind kind_;
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
        streams_(detail::streams_of(setup, &place_)),
        guard_(std::in_place, options.device),
        stream_(options.stream),
        products_(bf16_, stream_.get()),
        state_(detail::block_kind::device, options.device_memory, training_state_bytes(setup),
               "training backend: parameters"),
        work_(detail::block_kind::device, options.device_memory, "training backend: activations"),
        staging_(detail::block_kind::pinned, options.pinned_memory, "training backend: staging"),
        results_(detail::block_kind::pinned, options.pinned_memory, "training backend: scores") {
    if (setup.shape.rope.dim != 0) frequencies_ = flashmemory::detail::yarn_frequencies(setup.shape.rope);
    ask(cudaMemsetAsync(state_.as<void>(), 0, state_.bytes(), stream_.get()), "training backend: parameters");
    stream_.wait("training backend: parameters");
    guard_.reset();
  }

  void write(const train::training_state& state) override {
    const detail::device_guard current(options_.device);
    put(parameters(), state.parameters);
    put(first_moment(), state.first_moment);
    put(second_moment(), state.second_moment);
    updates_ = state.updates;
    if (bf16_) ask(detail::launch_copies(update_of()), "training backend: copies");
    stream_.wait("training backend: parameters");
  }

  train::training_state read() const override {
    const detail::device_guard current(options_.device);
    train::training_state state;
    state.parameters = get(parameters());
    state.first_moment = get(first_moment());
    state.second_moment = get(second_moment());
    state.updates = updates_;
    return state;
  }

  void clear_gradient() override {
    const detail::device_guard current(options_.device);
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
      detail::to_device_form(setup_.shape, flat.data() + r * flat_.count, form.data() + r * map_.count);
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
      detail::from_device_form(setup_.shape, form.data() + r * map_.count, flat.data() + r * flat_.count);
    }
    return flat;
  }

  detail::update_call update_of() const noexcept {
    detail::update_call call;
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

  void prepare(const train::training_batch& batch);
  void upload(const train::training_batch& batch);
  void upload_bytes(std::size_t at, const std::byte* from, std::size_t bytes);

  train::backend_setup setup_;
  training_options options_;
  train::parameter_map flat_;
  detail::device_parameters map_;
  bool bf16_;
  std::vector<std::int64_t> place_;  // [retrievers], of its stream among those in use
  std::vector<std::size_t> streams_;
  std::optional<detail::device_guard> guard_;  // while members are made
  work_stream stream_;
  detail::products products_;
  memory_block state_;  // parameters, moments, gradient, rounded copies
  growing_block work_, staging_, results_;
  flashmemory::detail::rope_frequencies frequencies_{};
  std::int64_t updates_ = 0;
  bool under_way_ = false;                          // a forward pass
  std::optional<detail::device_workspace> layout_;  // of the last batch
  detail::train_call call_;
};

void device_backend::prepare(const train::training_batch& batch) {
  layout_.reset();
  const detail::device_workspace layout(setup_, batch.windows(), batch.chunks, options_.tile_bytes);
  const std::int64_t windows = batch.windows(), keys = batch.chunks * setup_.keys_per_chunk;
  const train::encoder_shape& s = setup_.shape;
  const std::size_t rows = static_cast<std::size_t>(setup_.retrievers() * windows * s.hidden) * sizeof(float);
  std::size_t staging = rows + static_cast<std::size_t>(windows * 64) * sizeof(float);
  for (const std::size_t stream : streams_) {
    const train::document_keys& from = (*batch.keys)[stream];
    staging += s.trains_keys ? static_cast<std::size_t>(keys * s.hidden) * size_of(from.inputs.type())
                             : static_cast<std::size_t>(keys * (dim + 4));
    staging = (staging + 255) / 256 * 256;
  }
  const std::size_t results =
      static_cast<std::size_t>(setup_.retrievers() * batch.chunks * windows) * sizeof(float);
  if (!work_.holds(layout.bytes) || !staging_.holds(staging) || !results_.holds(results)) {
    stream_.wait("training backend");
    work_.reserve(layout.bytes);
    staging_.reserve(staging);
    results_.reserve(results);
  }
  layout_ = layout;

  const auto at = [&](std::size_t offset) { return work_.data() + offset; };
  const auto floats = [&](std::size_t offset) { return reinterpret_cast<float*>(at(offset)); };
  detail::train_call& c = call_;
  c = detail::train_call();
  c.bf16 = bf16_;
  c.retrievers = setup_.retrievers();
  c.true_windows = windows;
  c.windows = layout.windows;
  c.chunks = batch.chunks;
  c.keys_per_chunk = setup_.keys_per_chunk;
  c.keys = layout.keys;
  c.true_hidden = s.hidden;
  c.hidden = map_.hidden;
  c.true_rank = s.rank;
  c.rank = map_.rank;
  c.true_heads = s.heads;
  c.heads = map_.heads;
  c.parameter_count = map_.count;
  c.q_norm = map_.q_norm;
  c.offset = map_.offset;
  c.wk = map_.wk;
  c.q_norm_eps = static_cast<float>(s.q_norm_eps);
  c.key_scale_floor = static_cast<float>(s.key_scale_floor);
  c.gate_scale =
      static_cast<float>(1 / std::sqrt(static_cast<double>(dim)) / std::sqrt(static_cast<double>(s.heads)));
  c.bf16_rounding = s.bf16_rounding;
  c.rope = s.rope.dim != 0;
  c.quantise = s.quantise_keys;
  c.parameters = parameters();
  c.gradient = gradient();
  c.turns = floats(layout.turns);
  c.first = floats(layout.first);
  c.root = floats(layout.root);
  c.gates = floats(layout.gates);
  c.normed = at(layout.normed);
  c.flat = floats(layout.flat);
  c.queries = at(layout.queries);
  c.key_map = at(layout.key_map);
  c.keys_at = at(layout.keys_at);
  c.scores = floats(layout.scores);
  c.where = reinterpret_cast<std::int32_t*>(at(layout.where));
  c.pairs = floats(layout.pairs);
  c.d_flat = at(layout.d_flat);
  c.d_first = at(layout.d_first);
  c.d_low = floats(layout.d_low);
  c.d_keys = at(layout.d_keys);
  c.d_map = floats(layout.d_map);
  c.tile = floats(layout.tile);
  c.stream = stream_.get();
}

/// Staged by the host's threads: one alone is slower than the bus.
void device_backend::upload_bytes(std::size_t at, const std::byte* from, std::size_t bytes) {
  constexpr std::size_t piece = std::size_t{256} << 10;
  std::byte* const to = staging_.data() + at;
  flashmemory::detail::parallel_for(setup_.threads, static_cast<std::int32_t>((bytes + piece - 1) / piece),
                                    [&](std::int32_t i) {
                                      const std::size_t first = static_cast<std::size_t>(i) * piece;
                                      std::memcpy(to + first, from + first, std::min(piece, bytes - first));
                                    });
}

void device_backend::upload(const train::training_batch& batch) {
  const char* const purpose = "training backend: upload";
  const train::encoder_shape& s = setup_.shape;
  const std::int64_t windows = batch.windows(), retrievers = setup_.retrievers();
  const cudaStream_t stream = stream_.get();
  const auto send = [&](void* to, std::size_t from, std::size_t bytes) {
    ask(cudaMemcpyAsync(to, staging_.data() + from, bytes, cudaMemcpyHostToDevice, stream), purpose);
  };
  auto* const rows = reinterpret_cast<float*>(staging_.data());
  const std::size_t row_bytes = static_cast<std::size_t>(retrievers * windows * s.hidden) * sizeof(float);
  flashmemory::detail::parallel_for(
      setup_.threads, static_cast<std::int32_t>(retrievers * windows), [&](std::int32_t i) {
        const auto retriever = static_cast<std::size_t>(i / windows);
        (*batch.queries)[setup_.query[retriever]].read(batch.rows[static_cast<std::size_t>(i % windows)],
                                                       rows + i * s.hidden);
      });
  std::byte* const work = work_.data();
  send(call_.tile, 0, row_bytes);
  ask(detail::launch_pad_rows(call_, call_.tile, dtype::f32, windows, s.hidden, work + layout_->hidden,
                              call_.windows, call_.hidden, retrievers),
      purpose);
  std::size_t staged = row_bytes;
  if (call_.rope) {
    auto* turns = reinterpret_cast<float*>(staging_.data() + staged);
    for (const std::int64_t position : batch.positions) {
      const auto rotation = flashmemory::detail::rotation_at(frequencies_, position, s.rope.max_positions);
      for (std::size_t p = 0; p < frequencies_.size(); ++p) {
        *turns++ = rotation.cosine[p];
        *turns++ = rotation.sine[p];
      }
    }
    const std::size_t bytes = static_cast<std::size_t>(windows * 64) * sizeof(float);
    send(work + layout_->turns, staged, bytes);
    staged += bytes;
  }
  const std::int64_t keys = batch.chunks * setup_.keys_per_chunk;
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    const train::document_keys& from = (*batch.keys)[streams_[i]];
    staged = (staged + 255) / 256 * 256;
    if (!s.trains_keys) {
      const std::size_t bytes = static_cast<std::size_t>(keys * (dim + 4));
      upload_bytes(staged, from.native.data(), bytes);
      send(call_.tile, staged, bytes);
      for (std::int64_t r = 0; r < retrievers; ++r) {
        if (place_[static_cast<std::size_t>(r)] != static_cast<std::int64_t>(i)) continue;
        ask(detail::launch_native_keys(call_, call_.tile, keys, r), purpose);
      }
      staged += bytes;
      continue;
    }
    const dtype type = from.inputs.type();
    const std::size_t bytes = static_cast<std::size_t>(keys * s.hidden) * size_of(type);
    upload_bytes(staged, from.inputs.data(), bytes);
    std::byte* const to =
        work + layout_->inputs + operand_bytes(static_cast<std::int64_t>(i) * call_.keys * call_.hidden);
    if (call_.hidden == s.hidden && (type == dtype::bf16) == bf16_) {  // as it is wanted
      send(to, staged, bytes);
      ask(cudaMemsetAsync(to + bytes, 0, operand_bytes((call_.keys - keys) * s.hidden), stream), purpose);
    } else {
      send(call_.tile, staged, bytes);
      ask(detail::launch_pad_rows(call_, call_.tile, type, keys, s.hidden, to, call_.keys, call_.hidden, 1),
          purpose);
    }
    staged += bytes;
  }
}

void device_backend::forward(const train::training_batch& batch, float* scores) {
  const char* const purpose = "training backend: forward pass";
  const detail::device_guard current(options_.device);
  if (std::exchange(under_way_, true)) stream_.wait(purpose);  // one that failed may still read the staging
  prepare(batch);
  upload(batch);
  const detail::device_workspace& at = *layout_;
  const detail::train_call& c = call_;
  const std::int64_t width = c.true_heads * dim, columns = c.true_heads * c.windows;
  if (setup_.shape.trains_keys) {
    ask(detail::launch_key_map(c), purpose);
    for (std::int64_t r = 0; r < c.retrievers; ++r) {
      const matrix inputs = operand(
          at.inputs + operand_bytes(place_[static_cast<std::size_t>(r)] * c.keys * c.hidden), c.hidden, 0);
      const matrix key_map = operand(at.key_map + operand_bytes(r * dim * c.hidden), c.hidden, 0, true);
      float* const raw = bf16_ ? c.tile : static_cast<float*>(c.keys_at) + r * c.keys * dim;
      multiply(c.keys, dim, c.hidden, inputs, key_map, 0, raw, dim, 0, 1);
      ask(detail::launch_quantise(c, raw, r), purpose);
    }
  }
  const std::int64_t first_rows = map_.first_rows();
  multiply(c.windows, first_rows, c.hidden, operand(at.hidden, c.hidden, c.windows * c.hidden),
           weights(map_.first, c.hidden, true), 0, c.first, first_rows, c.windows * first_rows, c.retrievers);
  ask(detail::launch_normalise(c), purpose);
  multiply(c.windows, width, c.rank, operand(at.normed, c.rank, c.windows * c.rank),
           weights(map_.wq_b, c.rank, true), 0, c.flat, width, c.windows * width, c.retrievers);
  ask(detail::launch_finish(c), purpose);
  for (std::int64_t chunk = 0; chunk < c.chunks; chunk += at.tile_chunks) {
    const std::int64_t count = std::min(at.tile_chunks, c.chunks - chunk);
    const std::int64_t rows = count * c.keys_per_chunk;
    multiply(rows, columns, dim,
             operand(at.keys_at + operand_bytes(chunk * c.keys_per_chunk * dim), dim, c.keys * dim),
             operand(at.queries, dim, columns * dim, true), 0, c.tile, columns, rows * columns, c.retrievers);
    ask(detail::launch_reduce(c, chunk, count), purpose);
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
  const detail::device_guard current(options_.device);
  if (!layout_) throw error(status::bad_argument, "training backend: backward() without forward()");
  const detail::device_workspace& at = *layout_;
  const detail::train_call& c = call_;
  const std::int64_t width = c.true_heads * dim, first_rows = map_.first_rows();
  const auto pairs = static_cast<std::size_t>(c.retrievers * c.chunks * c.true_windows);
  std::memcpy(results_.data(), d_scores, pairs * sizeof(float));
  ask(cudaMemcpyAsync(c.scores, results_.data(), pairs * sizeof(float), cudaMemcpyHostToDevice, c.stream),
      purpose);
  ask(detail::launch_offset_gradient(c), purpose);
  ask(detail::launch_query_gradient(c), purpose);
  if (setup_.shape.trains_keys) {
    ask(detail::launch_clear_key_tail(c), purpose);
    for (std::int64_t chunk = 0; chunk < c.chunks; chunk += at.join_chunks) {
      ask(detail::launch_key_gradient(c, chunk, std::min(at.join_chunks, c.chunks - chunk)), purpose);
    }
    for (std::int64_t r = 0; r < c.retrievers; ++r) {
      multiply(dim, c.hidden, c.keys, operand(at.d_keys + operand_bytes(r * c.keys * dim), dim, 0, true),
               operand(at.inputs + operand_bytes(place_[static_cast<std::size_t>(r)] * c.keys * c.hidden),
                       c.hidden, 0),
               0, c.d_map + r * dim * c.hidden, c.hidden, 0, 1);
    }
    ask(detail::launch_map_gradient(c), purpose);
  }
  multiply(width, c.rank, c.windows, operand(at.d_flat, width, c.windows * width, true),
           operand(at.normed, c.rank, c.windows * c.rank), 1, c.gradient + map_.wq_b, c.rank, map_.count,
           c.retrievers);
  multiply(c.windows, c.rank, width, operand(at.d_flat, width, c.windows * width),
           weights(map_.wq_b, c.rank, false), 0, c.d_low, c.rank, c.windows * c.rank, c.retrievers);
  ask(detail::launch_norm_gradient(c), purpose);
  multiply(first_rows, c.hidden, c.windows, operand(at.d_first, first_rows, c.windows * first_rows, true),
           operand(at.hidden, c.hidden, c.windows * c.hidden), 1, c.gradient + map_.first, c.hidden,
           map_.count, c.retrievers);
}

double device_backend::update(const train::optimiser_step& step) {
  const char* const purpose = "training backend: optimiser";
  const detail::device_guard current(options_.device);
  work_.reserve(detail::product_bytes);  // a step without documents
  const train::optimiser_options& o = step.options;
  detail::update_call call = update_of();
  call.share = static_cast<float>(step.gradient_share);
  auto* const partial = reinterpret_cast<double*>(work_.data() + (layout_ ? layout_->partial : 0));
  ask(detail::launch_square_sum(call, partial), purpose);
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
  ask(detail::launch_adamw(call), purpose);
  ++updates_;
  return norm;
}

void check(const train::backend_setup& setup, const training_options& options) {
  const auto need = [](bool good, const char* what, std::int64_t value) {
    if (!good)
      throw argument_error(status::bad_argument, fmt::format("training backend: {} is {}", what, value));
  };
  const train::encoder_shape& s = setup.shape;
  need(setup.retrievers() > 0 && setup.retrievers() <= 65535, "the number of retrievers", setup.retrievers());
  need(setup.stream.size() == setup.query.size(), "the number of key streams",
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
    return std::make_unique<device_backend>(setup, options);
  };
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
