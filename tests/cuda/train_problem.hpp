// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <flashmemory/cuda/train.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <random>
#include <vector>

namespace flashmemory_test {

namespace fm = flashmemory;
namespace ft = flashmemory::train;

struct train_extents {
  std::int64_t hidden, rank, heads, windows, chunks, keys_per_chunk;
  bool trains_keys, rope;
  fm::dtype recorded;
};

/// One document and weights of several retrievers, all random.
struct train_problem {
  ft::backend_setup setup;
  std::vector<ft::row_matrix> queries;
  std::vector<ft::document_keys> keys;
  ft::training_batch batch;
  ft::training_state state;
  std::vector<float> d_scores;

  train_problem(std::mt19937& random, const train_extents& e) {
    std::normal_distribution<float> normal;
    ft::encoder_shape& s = setup.shape;
    s.hidden = e.hidden;
    s.rank = e.rank;
    s.heads = e.heads;
    s.trains_keys = e.trains_keys;
    s.quantise_keys = false;
    s.rope.dim = e.rope ? 64 : 0;
    setup.query = {1, 0, 1};  // taps and streams that are shared, and one that nobody reads
    setup.stream = {0, 2, 0};
    setup.keys_per_chunk = e.keys_per_chunk;
    setup.threads = fm::serial_threads();
    const auto row = [&](std::int64_t width) {
      std::vector<float> values(static_cast<std::size_t>(width));
      for (float& v : values) v = normal(random);
      return values;
    };
    const std::int64_t recorded = 2 * e.windows + 1;
    for (int tap = 0; tap < 2; ++tap) {
      queries.emplace_back(e.recorded, e.hidden);
      for (std::int64_t i = 0; i < recorded; ++i) queries.back().append(row(e.hidden).data());
    }
    const std::int64_t count = e.chunks * e.keys_per_chunk + 3;  // more than the complete chunks have
    for (int stream = 0; stream < 3; ++stream) {
      ft::document_keys one;
      one.keys = count;
      if (e.trains_keys) {
        one.inputs = ft::row_matrix(e.recorded, e.hidden);
        for (std::int64_t i = 0; i < count; ++i) one.inputs.append(row(e.hidden).data());
      } else {
        one.native.resize(static_cast<std::size_t>(count) * 132);
        for (std::int64_t i = 0; i < count; ++i) {
          fm::quantise_key(row(128).data(), one.native.data() + i * 132, 1e-4f);
        }
      }
      keys.push_back(std::move(one));
    }
    for (std::int64_t w = 0; w < e.windows; ++w) {
      batch.rows.push_back(2 * w + 1);
      batch.positions.push_back(1000 * w + 17);
    }
    batch.chunks = e.chunks;
    batch.queries = &queries;
    batch.keys = &keys;
    const ft::parameter_map map(s);
    for (std::int64_t r = 0; r < setup.retrievers(); ++r) {
      for (std::int64_t i = 0; i < map.count; ++i) {
        const double scale = i >= map.q_norm ? 0.3
                             : i >= map.wq_b && i < map.weights_proj
                                 ? std::sqrt(static_cast<double>(e.rank))
                                 : std::sqrt(static_cast<double>(e.hidden));
        const float v = i >= map.q_norm ? 0.3f * normal(random) : normal(random) / static_cast<float>(scale);
        state.parameters.push_back(i >= map.q_norm && i < map.offset ? 1 + v : v);
      }
    }
    for (std::int64_t i = 0; i < setup.retrievers() * e.chunks * e.windows; ++i) {
      d_scores.push_back(random() % 4 == 0 ? 0.0f : normal(random));
    }
  }
  train_problem(const train_problem&) = delete;

  std::size_t parameters_of_one() const { return state.parameters.size() / 3; }
};

/// What a backend makes of it: scores, and the gradient, which one AdamW step without memory leaves as first moment.
struct train_outcome {
  std::vector<float> scores, gradient;
  double norm = 0;
  ft::training_state after;
};

inline train_outcome outcome_of(ft::training_backend& backend, const train_problem& p, int documents = 1) {
  train_outcome out;
  out.scores.resize(p.d_scores.size());
  backend.write(p.state);
  backend.clear_gradient();
  for (int i = 0; i < documents; ++i) {
    backend.forward(p.batch, out.scores.data());
    backend.backward(p.batch, p.d_scores.data());
  }
  ft::optimiser_step step;
  step.options.beta1 = 0;
  step.options.clip = 0;
  step.rate = 1e-3;
  step.gradient_share = 1.0 / documents;
  out.norm = backend.update(step);
  out.after = backend.read();
  out.gradient = out.after.first_moment;
  return out;
}

/// Norm of a difference as a share of the second one's norm.
template <class A, class B>
double distance(const A& a, const B& b, std::int64_t first, std::int64_t end) {
  double difference = 0, norm = 0;
  for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(end); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace flashmemory_test
