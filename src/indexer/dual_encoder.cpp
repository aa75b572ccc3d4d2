// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <new>
#include <utility>

#include "src/core/parallel.hpp"
#include "src/indexer/dual_encoder_impl.hpp"
#include "src/indexer/kernels.hpp"
#include "src/indexer/key_fingerprint.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

std::size_t padded(std::size_t floats) noexcept { return (floats * sizeof(float) + 63) / 64 * 64; }

// Rows of a matrix that one task multiplies: about 256 KB of weights.
std::int64_t rows_per_task(std::int64_t columns) noexcept {
  return std::max<std::int64_t>(16, 65536 / columns);
}

}  // namespace

dual_encoder_indexer::impl::impl(dual_encoder_config c) : config(std::move(c)) {
  detail::validate(config);
  if (config.rope.dim != 0) frequencies = detail::yarn_frequencies(config.rope);
  const indexer_taps taps = taps_of(config);
  for (const retriever_weights& retriever : config.retrievers) {
    tap_of.push_back(detail::query_tap_of(taps, retriever));
    if (retriever.wk.empty()) continue;
    panels.push_back(hwy::AllocateAligned<float>(retriever.wk.size()));
    if (!panels.back()) throw std::bad_alloc();
    detail::pack_panels(retriever.wk.data(), config.hidden, panels.back().get());
  }
}

dual_encoder_indexer::impl::layout dual_encoder_indexer::impl::carve(void* base) const noexcept {
  layout out;
  const auto take = [&](std::size_t floats) {
    float* at = base ? reinterpret_cast<float*>(static_cast<std::byte*>(base) + out.bytes) : nullptr;
    out.bytes += padded(floats);
    return at;
  };
  const std::size_t retrievers = config.retrievers.size();
  const std::size_t heads = static_cast<std::size_t>(config.heads);
  out.queries = take(retrievers * heads * index_key_dim);
  out.gates = take(retrievers * heads);
  out.low_rank = take(retrievers * static_cast<std::size_t>(config.rank));
  return out;
}

void dual_encoder_indexer::impl::encode(std::int32_t first, std::int32_t count, const float* const* hidden,
                                        std::int64_t position, const layout& out,
                                        const thread_hook& threads) const noexcept {
  const std::int64_t rank = config.rank;
  const std::int64_t width = config.hidden;
  const std::int64_t heads = config.heads;
  const auto blocks = [](std::int64_t rows, std::int64_t step) {
    return static_cast<std::int32_t>((rows + step - 1) / step);
  };

  const std::int64_t a_step = rows_per_task(width);
  const std::int32_t a_blocks = blocks(rank, a_step);
  const std::int32_t gate_blocks = blocks(heads, a_step);
  const float gate_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(index_key_dim)) /
                                              std::sqrt(static_cast<double>(heads)));
  detail::parallel_for(threads, count * (a_blocks + gate_blocks), [&](std::int32_t task) {
    const std::int32_t i = task / (a_blocks + gate_blocks);
    const std::int32_t block = task % (a_blocks + gate_blocks);
    const retriever_weights& weights = config.retrievers[static_cast<std::size_t>(first + i)];
    if (block < a_blocks) {
      const std::int64_t row = block * a_step;
      detail::multiply_rows(weights.wq_a.data() + row * width, hidden[i], std::min(a_step, rank - row), width,
                            out.low_rank + i * rank + row);
      return;
    }
    const std::int64_t row = (block - a_blocks) * a_step;
    const std::int64_t rows = std::min(a_step, heads - row);
    float* gates = out.gates + i * heads + row;
    detail::multiply_rows(weights.weights_proj.data() + row * width, hidden[i], rows, width, gates);
    for (std::int64_t h = 0; h < rows; ++h) gates[h] *= gate_scale;
  });

  for (std::int32_t i = 0; i < count; ++i) {
    const retriever_weights& weights = config.retrievers[static_cast<std::size_t>(first + i)];
    float* a = out.low_rank + i * rank;
    double squares = 0;
    for (std::int64_t r = 0; r < rank; ++r) squares += static_cast<double>(a[r]) * a[r];
    const float root = static_cast<float>(
        std::sqrt(squares / static_cast<double>(rank) + static_cast<double>(config.q_norm_eps)));
    for (std::int64_t r = 0; r < rank; ++r) a[r] = a[r] / root * weights.q_norm[static_cast<std::size_t>(r)];
  }

  detail::rope_rotation rotation{};
  if (config.rope.dim != 0) {
    rotation = detail::rotation_at(frequencies, position, config.rope.max_positions);
  }
  const std::int64_t head_step = std::max<std::int64_t>(1, rows_per_task(rank) / index_key_dim);
  const std::int32_t head_blocks = blocks(heads, head_step);
  detail::parallel_for(threads, count * head_blocks, [&](std::int32_t task) {
    const std::int32_t i = task / head_blocks;
    const std::int64_t head = task % head_blocks * head_step;
    const std::int64_t n = std::min(head_step, heads - head);
    const retriever_weights& weights = config.retrievers[static_cast<std::size_t>(first + i)];
    float* queries = out.queries + (i * heads + head) * index_key_dim;
    detail::multiply_rows(weights.wq_b.data() + head * index_key_dim * rank, out.low_rank + i * rank,
                          n * index_key_dim, rank, queries);
    const auto round = [&](float value) { return config.bf16_rounding ? round_to_bf16(value) : value; };
    for (std::int64_t h = 0; h < n; ++h) {
      float* q = queries + h * index_key_dim;
      for (std::int32_t j = 0; j < index_key_dim; ++j) q[j] = round(q[j]);
      if (config.rope.dim != 0) {
        float* turned = q + index_key_dim - detail::rope_dim;
        for (std::size_t p = 0; p < detail::rope_dim / 2; ++p) {
          const float x = turned[2 * p];
          const float y = turned[2 * p + 1];
          turned[2 * p] = round(x * rotation.cosine[p] - y * rotation.sine[p]);
          turned[2 * p + 1] = round(x * rotation.sine[p] + y * rotation.cosine[p]);
        }
      }
      hadamard_128(q);
    }
  });
}

namespace detail {

std::int32_t query_tap_of(const indexer_taps& taps, const retriever_weights& retriever) noexcept {
  const auto same_layer = [&](const query_tap& tap) { return tap.layer == retriever.query_layer; };
  return static_cast<std::int32_t>(std::find_if(taps.queries.begin(), taps.queries.end(), same_layer) -
                                   taps.queries.begin());
}

}  // namespace detail

indexer_taps taps_of(const dual_encoder_config& config) {
  indexer_taps taps;
  taps.name = "dual_encoder";
  taps.index_key_fingerprint = detail::key_fingerprint(config);
  taps.log_odds = config.reduce == key_reduction::max;
  taps.reads.lanes = static_cast<std::int32_t>(config.retrievers.size());
  taps.reads.dim = index_key_dim;
  taps.reads.tokens_per_key = config.tokens_per_key;
  for (const retriever_weights& r : config.retrievers) {
    if (detail::query_tap_of(taps, r) == static_cast<std::int32_t>(taps.queries.size()))
      taps.queries.push_back({r.query_layer, tap_kind::hidden, config.hidden});
    if (!r.wk.empty())
      taps.index_keys.push_back({r.key_layer, config.hidden, config.tokens_per_key, config.key_window});
  }
  return taps;
}

dual_encoder_indexer::dual_encoder_indexer(dual_encoder_config config)
    : indexer(taps_of(config)), impl_(std::make_unique<impl>(std::move(config))) {}

dual_encoder_indexer::~dual_encoder_indexer() = default;

const dual_encoder_config& dual_encoder_indexer::config() const noexcept { return impl_->config; }

std::size_t dual_encoder_indexer::workspace_bytes(const kv_geometry&, std::int64_t,
                                                  std::int64_t) const noexcept {
  return impl_->carve(nullptr).bytes;
}

status dual_encoder_indexer::encode_query(std::int32_t retriever, const float* hidden, std::int64_t position,
                                          float* queries, float* gates, workspace scratch) const noexcept {
  if (retriever < 0 || retriever >= taps().reads.lanes) return status::out_of_range;
  if (position < 0) return status::bad_argument;
  if (!hidden || !queries || !gates) return status::null_data;
  if (scratch.bytes < padded(static_cast<std::size_t>(impl_->config.rank))) return status::workspace_small;
  if (!scratch.data) return status::null_data;
  impl::layout out;
  out.queries = queries;
  out.gates = gates;
  out.low_rank = static_cast<float*>(scratch.data);
  impl_->encode(retriever, 1, &hidden, position, out, serial_threads());
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
