// SPDX-License-Identifier: MIT
#include "indexer.hpp"

#include <cmath>
#include <flashmemory/cuda/query_encoder.hpp>
#include <random>
#include <string>

namespace replay {

namespace fm = flashmemory;

namespace {

/// Uniform numbers of standard deviation `size`, quickly.
std::vector<float> random_weights(std::int64_t count, float size, std::uint64_t seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  const float step = size * 3.4641016f * 0x1p-24f;
  for (float& x : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x = (static_cast<float>(state >> 40) - 0x1p23f) * step;
  }
  return values;
}

/// Scales to root mean square 1.
void normalise(float* values, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += double(values[i]) * double(values[i]);
  const auto factor = static_cast<float>(std::sqrt(double(count) / std::max(sum, 1e-30)));
  for (std::int64_t i = 0; i < count; ++i) values[i] *= factor;
}

/// Query heads and gates of all retrievers for the hidden states of topics first .. first + count - 1.
class topic_encoder {
 public:
  topic_encoder(const fm::dual_encoder_config& config, std::int32_t max_topics)
      : max_topics_(max_topics),
        encoder_(config, fm::cuda::context{}, options_for(max_topics)),
        hidden_(std::size_t(model::retrievers * max_topics) * model::hidden),
        positions_(std::vector<std::int64_t>(std::size_t(max_topics), 0)),
        codes_(std::size_t(model::retrievers * max_topics) * head_values),
        gates_(std::size_t(model::retrievers * max_topics) * model::retriever_heads),
        heads_(std::size_t(model::retrievers * max_topics) * head_values),
        scratch_(encoder_.workspace_bytes()) {}

  void encode(std::int32_t first, std::int32_t count) {
    std::vector<fm::const_tensor<2>> views;
    for (std::int32_t r = 0; r < model::retrievers; ++r) {
      bfloat16* const rows = hidden_.data() + std::int64_t{r} * max_topics_ * model::hidden;
      fill_topic_hidden(rows, r, first, count, stream_.get());
      views.emplace_back(rows, fm::dtype::bf16, count, model::hidden);
    }
    fm::fault f;
    must(
        encoder_.encode(views.data(), positions_.data(), count, {codes_.data(), gates_.data(), heads_.data()},
                        {scratch_.data(), scratch_.bytes()}, stream_.ref(), &f),
        f);
    stream_.wait();
    count_ = count;
    gates = gates_.get();
    heads = heads_.get();
  }

  const float* gates_of(std::int32_t retriever, std::int32_t topic) const {
    return gates.data() + (std::int64_t{retriever} * count_ + topic) * model::retriever_heads;
  }
  const float* heads_of(std::int32_t retriever, std::int32_t topic) const {
    return heads.data() + (std::int64_t{retriever} * count_ + topic) * head_values;
  }

 private:
  static constexpr std::int64_t head_values = model::retriever_heads * model::lightning_dim;
  static fm::cuda::query_encoder_options options_for(std::int32_t max_topics) {
    fm::cuda::query_encoder_options o;
    o.max_rows = max_topics;
    return o;
  }

  std::int32_t max_topics_, count_ = 0;
  fm::cuda::query_encoder encoder_;
  device_array<bfloat16> hidden_;
  device_array<std::int64_t> positions_;
  device_array<std::byte> codes_;
  device_array<float> gates_, heads_;
  device_array<std::byte> scratch_;
  device_stream stream_;
  std::vector<float> gates, heads;
};

/// sum over heads of gate * query, less its rotated half, at root mean square 1. Heads that count for a key then look
/// its way, those that count against it look away, and relu leaves them out.
void looked_for(const float* heads, const float* gates, float* direction) {
  std::vector<double> sum(model::lightning_dim, 0.0);
  for (std::int32_t h = 0; h < model::retriever_heads; ++h) {
    float head[model::lightning_dim];
    std::copy_n(heads + h * model::lightning_dim, model::lightning_dim, head);
    fm::hadamard_128(head);  // its own inverse
    // The gate carries the head's quantisation scale, a factor near the same for all.
    for (std::int32_t i = 0; i < model::lightning_dim / 2; ++i)
      sum[std::size_t(i)] += double(gates[h]) * double(head[i]);
  }
  for (std::int32_t i = 0; i < model::lightning_dim; ++i)
    direction[i] = static_cast<float>(sum[std::size_t(i)]);
  normalise(direction, model::lightning_dim);
  fm::hadamard_128(direction);
}

}  // namespace

fm::dual_encoder_config random_indexer(std::int64_t max_positions) {
  fm::dual_encoder_config c;
  c.hidden = model::hidden;
  c.rank = model::retriever_rank;
  c.heads = model::retriever_heads;
  c.rope.dim = 64;
  c.rope.max_positions = max_positions;
  c.tokens_per_key = model::csa_tokens;
  for (std::int32_t r = 0; r < model::retrievers; ++r) {
    const std::int32_t layer = model::target_layers[r];
    const auto seed = static_cast<std::uint64_t>(r) * 8;
    fm::retriever_weights w;
    w.name = "l" + std::to_string(layer);
    w.query_layer = w.key_layer = layer;
    w.wq_a = random_weights(std::int64_t{c.rank} * c.hidden, 0.0156f, seed + 1);
    w.q_norm = std::vector<float>(std::size_t(c.rank), 1.0f);
    w.wq_b = random_weights(std::int64_t{c.heads} * model::lightning_dim * c.rank, 0.022f, seed + 2);
    w.weights_proj = random_weights(std::int64_t{c.heads} * c.hidden, 0.0156f, seed + 3);
    c.retrievers.push_back(std::move(w));
  }
  return c;
}

device_array<float> make_directions(const fm::dual_encoder_config& config, std::int32_t topics) {
  constexpr std::int64_t dim = model::lightning_dim;
  std::vector<float> all(std::size_t(model::csa_layers * topics * dim));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& x : all) x = normal(random);
  constexpr std::int32_t at_once = 16;
  topic_encoder encoder(config, at_once);
  for (std::int32_t first = 0; first < topics; first += at_once) {
    const std::int32_t count = std::min(at_once, topics - first);
    encoder.encode(first, count);
    for (std::int32_t r = 0; r < model::retrievers; ++r)
      for (std::int32_t t = 0; t < count; ++t)
        looked_for(encoder.heads_of(r, t), encoder.gates_of(r, t),
                   all.data() + (std::int64_t{model::target_layers[r]} * topics + first + t) * dim);
  }
  for (std::int64_t i = 0; i < model::csa_layers * topics; ++i) normalise(all.data() + i * dim, dim);
  return device_array<float>(all);
}

}  // namespace replay
