// SPDX-License-Identifier: MIT
#include "src/train/learn/encoder.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "src/core/parallel.hpp"
#include "src/train/learn/gemm.hpp"
#include "src/train/learn/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {

parameter_map::parameter_map(const encoder_shape& s) noexcept {
  wq_b = wq_a + s.rank * s.hidden;
  weights_proj = wq_b + s.heads * index_key_dim * s.rank;
  wk = weights_proj + s.heads * s.hidden;
  q_norm = wk + (s.trains_keys ? index_key_dim * s.hidden : 0);
  offset = q_norm + s.rank;
  count = offset + 1;
}

namespace detail {
namespace {

constexpr std::int64_t dim = index_key_dim;

// Keys whose dots with all queries one task holds: 256 x 512 floats, half of an L2 cache.
constexpr std::int64_t task_keys = 256;

template <class Real>
void hadamard(Real* v) noexcept {
  for (std::int64_t stride = 1; stride < dim; stride *= 2) {
    for (std::int64_t base = 0; base < dim; base += 2 * stride) {
      for (std::int64_t i = base; i < base + stride; ++i) {
        const Real a = v[i];
        const Real b = v[i + stride];
        v[i] = a + b;
        v[i + stride] = a - b;
      }
    }
  }
  const Real root = std::sqrt(static_cast<Real>(dim));
  for (std::int64_t i = 0; i < dim; ++i) v[i] /= root;
}

// The transform over the first index of a [128, columns] matrix, in place.
template <class Real>
void hadamard_rows(Real* m, std::int64_t columns) noexcept {
  for (std::int64_t stride = 1; stride < dim; stride *= 2) {
    for (std::int64_t base = 0; base < dim; base += 2 * stride) {
      for (std::int64_t i = base; i < base + stride; ++i) {
        Real* a = m + i * columns;
        Real* b = m + (i + stride) * columns;
        for (std::int64_t c = 0; c < columns; ++c) {
          const Real u = a[c];
          const Real v = b[c];
          a[c] = u + v;
          b[c] = u - v;
        }
      }
    }
  }
  const Real root = std::sqrt(static_cast<Real>(dim));
  for (std::int64_t i = 0; i < dim * columns; ++i) m[i] /= root;
}

template <class Real>
Real to_bf16(Real value) noexcept {
  return static_cast<Real>(round_to_bf16(static_cast<float>(value)));
}

template <class Real>
Real gate_scale(std::int64_t heads) noexcept {
  return static_cast<Real>(1 / std::sqrt(static_cast<double>(dim)) / std::sqrt(static_cast<double>(heads)));
}

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

}  // namespace

void read_parameters(const encoder_shape& shape, const retriever_weights& w, float* p) {
  const parameter_map map(shape);
  std::copy(w.wq_a.begin(), w.wq_a.end(), p + map.wq_a);
  std::copy(w.wq_b.begin(), w.wq_b.end(), p + map.wq_b);
  std::copy(w.weights_proj.begin(), w.weights_proj.end(), p + map.weights_proj);
  std::copy(w.wk.begin(), w.wk.end(), p + map.wk);
  std::copy(w.q_norm.begin(), w.q_norm.end(), p + map.q_norm);
  p[map.offset] = w.logit_offset;
}

void write_parameters(const encoder_shape& shape, const float* p, retriever_weights& w) {
  const parameter_map map(shape);
  w.wq_a.assign(p + map.wq_a, p + map.wq_b);
  w.wq_b.assign(p + map.wq_b, p + map.weights_proj);
  w.weights_proj.assign(p + map.weights_proj, p + map.wk);
  w.wk.assign(p + map.wk, p + map.q_norm);
  w.q_norm.assign(p + map.q_norm, p + map.offset);
  w.logit_offset = p[map.offset];
}

template <class Real>
std::vector<Real> scratch_pool<Real>::take(std::size_t count) {
  std::vector<Real> buffer;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      buffer = std::move(free_.back());
      free_.pop_back();
    }
  }
  if (buffer.size() < count) buffer.resize(count);
  return buffer;
}

template <class Real>
void scratch_pool<Real>::give(std::vector<Real> buffer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(buffer));
}

template <class Real>
encoder<Real>::encoder(const encoder_shape& shape) : shape_(shape), map_(shape) {
  if (shape.rope.dim != 0) frequencies_ = flashmemory::detail::yarn_frequencies(shape.rope);
}

template <class Real>
const Real* encoder<Real>::operand_of(const Real* from, std::int64_t count, std::vector<Real>& to) const {
  if (shape_.operands == precision::f32 || from == nullptr) return from;
  to.assign(from, from + count);
  round_operand(to);
  return to.data();
}

template <class Real>
void encoder<Real>::round_operand(std::vector<Real>& values) const {
  if (shape_.operands == precision::bf16) {
    std::transform(values.begin(), values.end(), values.begin(), to_bf16<Real>);
  }
}

template <class Real>
void encoder<Real>::turn(Real* head, std::int64_t position, bool back) const noexcept {
  const auto rotation = flashmemory::detail::rotation_at(frequencies_, position, shape_.rope.max_positions);
  Real* pairs = head + dim - flashmemory::detail::rope_dim;
  for (std::size_t p = 0; p < frequencies_.size(); ++p) {
    const Real cosine = static_cast<Real>(rotation.cosine[p]);
    const Real sine = static_cast<Real>(back ? -rotation.sine[p] : rotation.sine[p]);
    const Real x = pairs[2 * p];
    const Real y = pairs[2 * p + 1];
    pairs[2 * p] = x * cosine - y * sine;
    pairs[2 * p + 1] = x * sine + y * cosine;
  }
}

template <class Real>
void encoder<Real>::encode_queries(const Real* parameters, const encoder_input<Real>& input,
                                   const thread_hook& threads) {
  const std::int64_t n = input.windows;
  const std::int64_t rank = shape_.rank;
  const std::int64_t width = shape_.heads * dim;
  low_rank_.resize(size(n * rank));
  normed_.resize(size(n * rank));
  root_.resize(size(n));
  flat_.resize(size(n * width));
  queries_.resize(size(n * width));
  gates_.resize(size(n * shape_.heads));
  const Real* hidden = operand_of(input.hidden, n * shape_.hidden, hidden_);
  const Real* wq_a = operand_of(parameters + map_.wq_a, rank * shape_.hidden, wq_a_);
  const Real* wq_b = operand_of(parameters + map_.wq_b, width * rank, wq_b_);
  const Real* gate_map =
      operand_of(parameters + map_.weights_proj, shape_.heads * shape_.hidden, weights_proj_);
  parallel_gemm<Real>(threads, n, rank, shape_.hidden, 1, {hidden, shape_.hidden},
                      {wq_a, shape_.hidden, true}, 0, low_rank_.data(), rank);
  for (std::int64_t w = 0; w < n; ++w) {
    const Real* a = low_rank_.data() + w * rank;
    double squares = 0;
    for (std::int64_t r = 0; r < rank; ++r) squares += static_cast<double>(a[r]) * static_cast<double>(a[r]);
    root_[size(w)] = static_cast<Real>(std::sqrt(squares / static_cast<double>(rank) + shape_.q_norm_eps));
    for (std::int64_t r = 0; r < rank; ++r) {
      normed_[size(w * rank + r)] = a[r] / root_[size(w)] * parameters[map_.q_norm + r];
    }
  }
  round_operand(normed_);
  parallel_gemm<Real>(threads, n, width, rank, 1, {normed_.data(), rank}, {wq_b, rank, true}, 0, flat_.data(),
                      width);
  // Gates come out as [heads, windows]: the loops over windows are the vectorised ones.
  gemm(shape_.heads, n, shape_.hidden, gate_scale<Real>(shape_.heads), operand<Real>{gate_map, shape_.hidden},
       operand<Real>{hidden, shape_.hidden, true}, Real{0}, gates_.data(), n);
  flashmemory::detail::parallel_for(threads, static_cast<std::int32_t>(shape_.heads), [&](std::int32_t h) {
    for (std::int64_t w = 0; w < n; ++w) {
      Real* q = queries_.data() + (h * n + w) * dim;
      std::copy_n(flat_.data() + w * width + h * dim, dim, q);
      const auto round = [&](Real* v) {
        if (shape_.bf16_rounding) std::transform(v, v + dim, v, to_bf16<Real>);
      };
      round(q);
      if (shape_.rope.dim != 0) {
        turn(q, input.positions[w], false);
        round(q);
      }
      hadamard(q);
    }
  });
  round_operand(queries_);
}

template <class Real>
void encoder<Real>::forward(const Real* parameters, const encoder_input<Real>& input,
                            const thread_hook& threads) {
  encode_queries(parameters, input, threads);
  const std::int64_t n = input.windows;
  const std::int64_t columns = shape_.heads * n;
  const std::int64_t keys = input.chunks * input.keys_per_chunk;
  if (shape_.trains_keys) {
    key_map_.assign(parameters + map_.wk, parameters + map_.q_norm);
    hadamard_rows(key_map_.data(), shape_.hidden);
    round_operand(key_map_);
    keys_.resize(size(keys * dim));
  }
  const Real* key_inputs = operand_of(input.key_inputs, keys * shape_.hidden, key_inputs_);
  // Keys that are not trained are e4m3 numbers times a scale.
  const Real* given_keys = shape_.trains_keys ? nullptr : operand_of(input.keys, keys * dim, keys_);
  scores_.resize(size(input.chunks * n));
  where_.resize(size(input.chunks * n));
  const Real offset = parameters[map_.offset];
  const std::int64_t step = std::max<std::int64_t>(1, task_keys / input.keys_per_chunk);
  const auto tasks = static_cast<std::int32_t>((input.chunks + step - 1) / step);
  flashmemory::detail::parallel_for(threads, tasks, [&](std::int32_t task) {
    const std::int64_t chunk = task * step;
    const std::int64_t count = std::min(step, input.chunks - chunk);
    const std::int64_t first = chunk * input.keys_per_chunk;
    const std::int64_t rows = count * input.keys_per_chunk;
    const Real* block = shape_.trains_keys ? keys_.data() + first * dim : given_keys + first * dim;
    if (shape_.trains_keys) {
      Real* out = keys_.data() + first * dim;
      gemm(rows, dim, shape_.hidden, Real{1},
           operand<Real>{key_inputs + first * shape_.hidden, shape_.hidden},
           operand<Real>{key_map_.data(), shape_.hidden, true}, Real{0}, out, dim);
      if (shape_.quantise_keys) quantise_in_place(out, rows, static_cast<Real>(shape_.key_scale_floor));
      if (shape_.operands == precision::bf16) std::transform(out, out + rows * dim, out, to_bf16<Real>);
    }
    std::vector<Real> dots = scratch_.take(size(rows * columns));
    gemm(rows, columns, dim, Real{1}, operand<Real>{block, dim}, operand<Real>{queries_.data(), dim, true},
         Real{0}, dots.data(), columns);
    for (std::int64_t c = 0; c < count; ++c) {
      reduce_chunk(dots.data() + c * input.keys_per_chunk * columns, input.keys_per_chunk, shape_.heads, n,
                   gates_.data(), offset, scores_.data() + (chunk + c) * n, where_.data() + (chunk + c) * n);
    }
    scratch_.give(std::move(dots));
  });
}

template <class Real>
void encoder<Real>::backward(const Real* parameters, const encoder_input<Real>& input, const Real* d_scores,
                             Real* gradient, const thread_hook& threads) {
  const std::int64_t n = input.windows;
  const std::int64_t heads = shape_.heads;
  const std::int64_t chunks = input.chunks;
  const bool rounds = shape_.operands == precision::bf16;
  const Real* keys = shape_.trains_keys || rounds ? keys_.data() : input.keys;
  d_queries_.assign(queries_.size(), Real{0});
  d_gates_.assign(gates_.size(), Real{0});
  pair_.resize(size(chunks * n * heads));
  // Only a chunk's best key has a gradient: per pair of chunk and window 2 x heads x 128 multiply-adds.
  flashmemory::detail::parallel_for(threads, static_cast<std::int32_t>(n), [&](std::int32_t w) {
    for (std::int64_t c = 0; c < chunks; ++c) {
      const Real dz = d_scores[c * n + w];
      if (dz == 0) continue;
      const Real* key = keys + (c * input.keys_per_chunk + where_[size(c * n + w)]) * dim;
      backward_query(key, dz, heads, queries_.data() + w * dim, n * dim, gates_.data() + w, n,
                     d_queries_.data() + w * dim, d_gates_.data() + w, pair_.data() + (c * n + w) * heads);
    }
  });
  double d_offset = 0;
  for (std::int64_t i = 0; i < chunks * n; ++i) d_offset += static_cast<double>(d_scores[i]);
  gradient[map_.offset] += static_cast<Real>(d_offset);
  if (shape_.trains_keys) {
    d_keys_.resize(keys_.size());
    constexpr std::int64_t step = 8;
    const auto tasks = static_cast<std::int32_t>((chunks + step - 1) / step);
    flashmemory::detail::parallel_for(threads, tasks, [&](std::int32_t task) {
      const std::int64_t end = std::min(chunks, (task + 1) * step);
      for (std::int64_t c = task * step; c < end; ++c) {
        Real* d_chunk = d_keys_.data() + c * input.keys_per_chunk * dim;
        std::fill_n(d_chunk, input.keys_per_chunk * dim, Real{0});
        for (std::int64_t w = 0; w < n; ++w) {
          if (d_scores[c * n + w] == 0) continue;
          backward_key(pair_.data() + (c * n + w) * heads, heads, queries_.data() + w * dim, n * dim,
                       d_chunk + where_[size(c * n + w)] * dim);
        }
      }
    });
    round_operand(d_keys_);
    const std::int64_t count = chunks * input.keys_per_chunk;
    std::vector<Real> d_map = scratch_.take(size(dim * shape_.hidden));
    parallel_gemm<Real>(threads, dim, shape_.hidden, count, 1, {d_keys_.data(), dim, true},
                        {rounds ? key_inputs_.data() : input.key_inputs, shape_.hidden}, 0, d_map.data(),
                        shape_.hidden);
    hadamard_rows(d_map.data(), shape_.hidden);
    for (std::int64_t i = 0; i < dim * shape_.hidden; ++i) gradient[map_.wk + i] += d_map[size(i)];
    scratch_.give(std::move(d_map));
  }
  backward_encoder(parameters, input, gradient, threads);
}

template <class Real>
void encoder<Real>::backward_encoder(const Real* parameters, const encoder_input<Real>& input, Real* gradient,
                                     const thread_hook& threads) {
  const std::int64_t n = input.windows;
  const std::int64_t rank = shape_.rank;
  const std::int64_t width = shape_.heads * dim;
  const bool rounds = shape_.operands == precision::bf16;
  const Real* hidden = rounds ? hidden_.data() : input.hidden;
  round_operand(d_gates_);
  gemm(shape_.heads, shape_.hidden, n, gate_scale<Real>(shape_.heads), operand<Real>{d_gates_.data(), n},
       operand<Real>{hidden, shape_.hidden}, Real{1}, gradient + map_.weights_proj, shape_.hidden);
  flashmemory::detail::parallel_for(threads, static_cast<std::int32_t>(shape_.heads), [&](std::int32_t h) {
    for (std::int64_t w = 0; w < n; ++w) {
      Real* q = d_queries_.data() + (h * n + w) * dim;
      hadamard(q);  // its own transpose
      if (shape_.rope.dim != 0) turn(q, input.positions[w], true);
      std::copy_n(q, dim, flat_.data() + w * width + h * dim);
    }
  });
  round_operand(flat_);
  parallel_gemm<Real>(threads, width, rank, n, 1, {flat_.data(), width, true}, {normed_.data(), rank}, 1,
                      gradient + map_.wq_b, rank);
  d_low_rank_.resize(size(n * rank));
  parallel_gemm<Real>(threads, n, rank, width, 1, {flat_.data(), width},
                      {rounds ? wq_b_.data() : parameters + map_.wq_b, rank}, 0, d_low_rank_.data(), rank);
  for (std::int64_t w = 0; w < n; ++w) {
    const Real* a = low_rank_.data() + w * rank;
    Real* d = d_low_rank_.data() + w * rank;
    const Real root = root_[size(w)];
    double along = 0;
    for (std::int64_t r = 0; r < rank; ++r) {
      gradient[map_.q_norm + r] += d[r] * a[r] / root;
      d[r] *= parameters[map_.q_norm + r];
      along += static_cast<double>(d[r]) * static_cast<double>(a[r]);
    }
    const Real pull = static_cast<Real>(along / static_cast<double>(rank)) / (root * root * root);
    for (std::int64_t r = 0; r < rank; ++r) d[r] = d[r] / root - a[r] * pull;
  }
  round_operand(d_low_rank_);
  parallel_gemm<Real>(threads, rank, shape_.hidden, n, 1, {d_low_rank_.data(), rank, true},
                      {hidden, shape_.hidden}, 1, gradient + map_.wq_a, shape_.hidden);
}

template class encoder<float>;
template class encoder<double>;
template class scratch_pool<float>;
template class scratch_pool<double>;

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
