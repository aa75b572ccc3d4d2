// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>

#include "cuda/train/backend_impl.hpp"
#include "src/core/parallel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr std::int64_t dim = index_key_dim;

}  // namespace

bool device_backend::find_document(const train::training_batch& batch, const device_workspace& at) {
  coming_.reset();
  const std::int64_t keys = batch.chunks * setup_.keys_per_chunk;
  inputs_.clear();
  sent_.assign(streams_.size(), keys);
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    inputs_.push_back(work_.data() + at.inputs +
                      operand_bytes(static_cast<std::int64_t>(i) * at.keys * map_.hidden));
  }
  if (!batch.source || !setup_.shape.trains_keys || options_.document_bytes == 0) return true;
  kept_document fresh;
  for (const std::size_t stream : streams_) {
    const train::row_matrix& rows = (*batch.keys)[stream].inputs;
    if (rows.bytes() > at.product - at.tile) return true;  // it passes through the tile
    fresh.bytes += operand_bytes(padded(rows.rows(), 64) * map_.hidden);
  }
  const auto same = [&](const kept_document& k) {
    return !k.source.owner_before(batch.source) && !batch.source.owner_before(k.source);
  };
  const auto found = std::find_if(kept_.begin(), kept_.end(), same);
  const auto use = [&](const kept_document& k) {
    for (std::size_t i = 0; i < streams_.size(); ++i) inputs_[i] = k.streams[i].as<std::byte>();
  };
  if (found != kept_.end()) {
    kept_.splice(kept_.begin(), kept_, found);
    use(kept_.front());
    return false;
  }
  if (fresh.bytes > options_.document_bytes) return true;
  const auto gone = [](const kept_document& k) { return k.source.expired(); };
  const bool drops =
      kept_bytes_ + fresh.bytes > options_.document_bytes || std::any_of(kept_.begin(), kept_.end(), gone);
  if (drops) stream_.wait("training backend");  // the step before may still read them
  for (auto k = kept_.end(); drops && k != kept_.begin();) {
    --k;
    if (!gone(*k) && kept_bytes_ + fresh.bytes <= options_.document_bytes) continue;
    kept_bytes_ -= k->bytes;
    k = kept_.erase(k);
  }
  try {
    for (const std::size_t stream : streams_) {
      const std::int64_t rows = padded((*batch.keys)[stream].inputs.rows(), 64);
      fresh.streams.emplace_back(block_kind::device, options_.device_memory,
                                 operand_bytes(rows * map_.hidden), "training backend: documents");
    }
  } catch (const admission_error&) {
    return true;
  }
  for (std::size_t i = 0; i < streams_.size(); ++i) sent_[i] = (*batch.keys)[streams_[i]].inputs.rows();
  fresh.source = batch.source;
  use(fresh);
  coming_ = std::move(fresh);
  return true;
}

void device_backend::prepare(const train::training_batch& batch) {
  layout_.reset();
  const device_workspace layout(setup_, batch.windows(), batch.chunks, options_.tile_bytes);
  const std::int64_t windows = batch.windows();
  const train::encoder_shape& s = setup_.shape;
  const std::size_t rows = static_cast<std::size_t>(setup_.retrievers() * windows * s.hidden) * sizeof(float);
  if (!work_.holds(layout.bytes)) {
    stream_.wait("training backend");
    work_.reserve(layout.bytes);
  }
  if (!find_document(batch, layout)) sent_.assign(streams_.size(), 0);
  std::size_t staging = rows + static_cast<std::size_t>(windows * 64) * sizeof(float);
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    const train::document_keys& from = (*batch.keys)[streams_[i]];
    staging = (staging + 255) / 256 * 256;
    staging += s.trains_keys ? static_cast<std::size_t>(sent_[i] * s.hidden) * size_of(from.inputs.type())
                             : static_cast<std::size_t>(sent_[i] * (dim + 4));
  }
  const std::size_t results =
      static_cast<std::size_t>(setup_.retrievers() * batch.chunks * windows) * sizeof(float);
  if (!staging_.holds(staging) || !results_.holds(results)) {
    stream_.wait("training backend");
    staging_.reserve(staging);
    results_.reserve(results);
  }
  layout_ = layout;

  const auto at = [&](std::size_t offset) { return work_.data() + offset; };
  const auto floats = [&](std::size_t offset) { return reinterpret_cast<float*>(at(offset)); };
  train_call& c = call_;
  c = train_call();
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
  ask(launch_pad_rows(call_, call_.tile, dtype::f32, windows, s.hidden, work + layout_->hidden, call_.windows,
                      call_.hidden, retrievers),
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
    const std::int64_t count = sent_[i];
    if (count == 0) continue;
    staged = (staged + 255) / 256 * 256;
    if (!s.trains_keys) {
      const std::size_t bytes = static_cast<std::size_t>(keys * (dim + 4));
      upload_bytes(staged, from.native.data(), bytes);
      send(call_.tile, staged, bytes);
      for (std::int64_t r = 0; r < retrievers; ++r) {
        if (place_[static_cast<std::size_t>(r)] != static_cast<std::int64_t>(i)) continue;
        ask(launch_native_keys(call_, call_.tile, keys, r), purpose);
      }
      staged += bytes;
      continue;
    }
    const dtype type = from.inputs.type();
    const std::int64_t padded_count = padded(count, 64);
    const std::size_t bytes = static_cast<std::size_t>(count * s.hidden) * size_of(type);
    upload_bytes(staged, from.inputs.data(), bytes);
    std::byte* const to = inputs_[i];
    if (call_.hidden == s.hidden && (type == dtype::bf16) == bf16_) {  // as it is wanted
      send(to, staged, bytes);
      ask(cudaMemsetAsync(to + bytes, 0, operand_bytes((padded_count - count) * s.hidden), stream), purpose);
    } else {
      send(call_.tile, staged, bytes);
      ask(launch_pad_rows(call_, call_.tile, type, count, s.hidden, to, padded_count, call_.hidden, 1),
          purpose);
    }
    staged += bytes;
  }
  if (coming_) {
    kept_bytes_ += coming_->bytes;
    kept_.push_front(std::move(*coming_));
    coming_.reset();
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
