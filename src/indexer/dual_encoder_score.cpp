// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/core/parallel.hpp"
#include "src/indexer/dual_encoder_impl.hpp"
#include "src/indexer/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

// Keys of one task; fixed, so that results cannot depend on the number of threads.
constexpr std::int64_t task_keys = 2048;

// Logits that a task holds at once, over all retrievers; 8 KB of stack.
constexpr std::int64_t held_logits = 2048;

// Folds keys one after another into the score of their chunk.
class chunk_reducer {
 public:
  explicit chunk_reducer(key_reduction how) noexcept : how_(how) { restart(); }

  void restart() noexcept {
    value_ = how_ == key_reduction::max ? -std::numeric_limits<float>::infinity() : 0.0f;
    nan_ = false;
  }

  void add(float logit) noexcept {
    nan_ = nan_ || std::isnan(logit);
    switch (how_) {
      case key_reduction::max:
        value_ = std::max(value_, logit);
        return;
      case key_reduction::count_positive:
        value_ += logit > 0 ? 1.0f : 0.0f;
        return;
      case key_reduction::sum: {
        const float e = std::exp(-std::fabs(logit));
        value_ += logit > 0 ? 1 / (1 + e) : e / (1 + e);
        return;
      }
    }
  }

  float value() const noexcept { return nan_ ? std::numeric_limits<float>::quiet_NaN() : value_; }

 private:
  key_reduction how_;
  float value_;
  bool nan_;
};

}  // namespace

status dual_encoder_indexer::encode_index_keys(std::int32_t lane, view<const float, 2> rows,
                                               view<std::byte, 2> keys, workspace,
                                               thread_hook threads) const noexcept {
  const dual_encoder_config& c = impl_->config;
  if (lane < 0 || lane >= taps().reads.lanes) return status::out_of_range;
  if (impl_->panels.empty()) return status::unsupported;  // the model's own keys, nothing to encode them with
  const std::int64_t count = keys.shape[0];
  if (count < 0 || keys.shape[1] != detail::index_key_bytes) return status::bad_shape;
  if (count == 0) return status::ok;
  if (rows.shape[0] != (count - 1) * c.tokens_per_key + c.key_window || rows.shape[1] != c.hidden ||
      (rows.stride[1] != 1 && c.hidden > 1) || keys.stride[1] != 1 || keys.stride[0] < keys.shape[1]) {
    return status::bad_shape;
  }
  if (!rows.data || !keys.data) return status::null_data;
  const float* panels = impl_->panels[static_cast<std::size_t>(lane)].get();
  const auto tasks = static_cast<std::int32_t>((count + detail::project_block - 1) / detail::project_block);
  detail::parallel_for(threads, tasks, [&](std::int32_t task) {
    const std::int64_t first = std::int64_t{task} * detail::project_block;
    const auto n = static_cast<std::int32_t>(std::min<std::int64_t>(detail::project_block, count - first));
    float projected[detail::project_block * index_key_dim];
    detail::project_keys(rows.data + first * c.tokens_per_key * rows.stride[0], rows.stride[0],
                         c.tokens_per_key, c.key_window, n, c.hidden, panels, projected);
    for (std::int32_t i = 0; i < n; ++i) {
      hadamard_128(projected + i * index_key_dim);
      quantise_key(projected + i * index_key_dim, keys.data + (first + i) * keys.stride[0],
                   c.key_scale_floor);
    }
  });
  return status::ok;
}

status dual_encoder_indexer::score_keys(std::int32_t retriever, const float* queries, const float* gates,
                                        const std::byte* keys, std::int64_t count, std::int64_t page_keys,
                                        index_key_layout layout, float* logits,
                                        thread_hook threads) const noexcept {
  if (retriever < 0 || retriever >= taps().reads.lanes) return status::out_of_range;
  if (count < 0 || page_keys <= 0) return status::bad_argument;
  if (layout != index_key_layout::interleaved && layout != index_key_layout::planar)
    return status::bad_argument;
  if (count == 0) return status::ok;
  if (!queries || !gates || !keys || !logits) return status::null_data;
  const float offset = impl_->config.retrievers[static_cast<std::size_t>(retriever)].logit_offset;
  const detail::stored_keys source{keys, page_keys, layout};
  const auto tasks = static_cast<std::int32_t>((count + task_keys - 1) / task_keys);
  detail::parallel_for(threads, tasks, [&](std::int32_t task) {
    const std::int64_t first = task * task_keys;
    detail::score_keys_range(queries, gates, impl_->config.heads, source, first,
                             std::min(task_keys, count - first), offset, logits + first);
  });
  return status::ok;
}

status dual_encoder_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  const dual_encoder_config& c = impl_->config;
  const std::int32_t retrievers = taps().reads.lanes;
  const workspace& scratch = request.scratch;
  const thread_hook& threads = request.threads;
  if (!request.reader) return status::null_data;
  if (request.chunks < 0 || request.position < 0) return status::bad_argument;
  if (scores.shape[0] != request.chunks) return status::bad_shape;
  const kv_geometry& geometry = request.reader->geometry();
  const index_key_geometry& keys = geometry.index_keys;
  if (keys.lanes < retrievers || keys.type != index_key_type::e4m3 || keys.dim != index_key_dim ||
      keys.tokens_per_key != c.tokens_per_key) {
    return status::bad_shape;
  }
  const std::int64_t per_chunk = geometry.index_keys_per_chunk();
  detail::stored_keys sources[detail::max_retrievers];
  for (std::int32_t i = 0; i < retrievers; ++i) {
    index_key_pages pages;
    if (const status s = request.reader->index_keys(request.sequence, i, &pages); s != status::ok) return s;
    if (pages.keys / per_chunk < request.chunks) return status::index_keys_missing;
    sources[i] = {pages.data, per_chunk, geometry.index_keys.layout};
  }
  if (request.chunks == 0) return status::ok;
  const float* hidden[detail::max_retrievers];
  if (!request.queries || !scores.data) return status::null_data;
  for (std::int32_t i = 0; i < retrievers; ++i) {
    hidden[i] = request.queries[impl_->tap_of[static_cast<std::size_t>(i)]];
    if (!hidden[i]) return status::null_data;
  }
  if (scratch.bytes < impl_->carve(nullptr).bytes) return status::workspace_small;
  if (!scratch.data) return status::null_data;
  const impl::layout encoded = impl_->carve(scratch.data);
  impl_->encode(0, retrievers, hidden, request.position, encoded, threads);

  const std::int64_t task_chunks = std::max<std::int64_t>(1, task_keys / per_chunk);
  const std::int64_t held_keys = held_logits / retrievers / 32 * 32;  // whole tiles
  const auto tasks = static_cast<std::int32_t>((request.chunks + task_chunks - 1) / task_chunks);
  detail::parallel_for(threads, tasks, [&](std::int32_t task) {
    const std::int64_t chunk_end = std::min(request.chunks, (task + std::int64_t{1}) * task_chunks);
    const std::int64_t end = chunk_end * per_chunk;
    std::int64_t chunk = task * task_chunks;
    std::int64_t chunk_keys = 0;
    chunk_reducer reducer(c.reduce);
    float logits[held_logits];
    for (std::int64_t first = chunk * per_chunk; first < end; first += held_keys) {
      const std::int64_t n = std::min(held_keys, end - first);
      for (std::int32_t i = 0; i < retrievers; ++i) {
        detail::score_keys_range(encoded.queries + i * std::int64_t{c.heads} * index_key_dim,
                                 encoded.gates + i * std::int64_t{c.heads}, c.heads, sources[i], first, n,
                                 c.retrievers[static_cast<std::size_t>(i)].logit_offset,
                                 logits + i * held_keys);
      }
      for (std::int64_t k = 0; k < n; ++k) {
        reducer.add(detail::combine_logits(c.combine, logits + k, retrievers, held_keys));
        if (++chunk_keys < per_chunk) continue;
        scores(chunk++) = reducer.value();
        reducer.restart();
        chunk_keys = 0;
      }
    }
  });
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
