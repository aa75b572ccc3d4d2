// SPDX-License-Identifier: MIT
#include "src/train/learn/model.hpp"

#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>
#include <set>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw argument_error(status::bad_shape, formatted(text, std::forward<Args>(args)...));
}

}  // namespace

model_taps::model_taps(const dual_encoder_config& config, const recording_geometry& geometry,
                       std::int64_t tokens_per_chunk) {
  if (tokens_per_chunk % config.tokens_per_key != 0) {
    refuse("a chunk of {} tokens does not hold whole keys of {} tokens", tokens_per_chunk,
           config.tokens_per_key);
  }
  keys_per_chunk = tokens_per_chunk / config.tokens_per_key;
  if (config.retrievers.empty()) refuse("the dual encoder has no retriever");
  for (const retriever_weights& retriever : config.retrievers) {
    const auto tap = std::find_if(geometry.queries.begin(), geometry.queries.end(), [&](const query_tap& t) {
      return t.layer == retriever.query_layer && t.kind == tap_kind::hidden;
    });
    if (tap == geometry.queries.end()) {
      refuse("retriever '{}': hidden states of layer {} were not recorded", retriever.name,
             retriever.query_layer);
    }
    if (tap->width != config.hidden) {
      refuse("retriever '{}': recorded hidden states have {} values, the dual encoder reads {}",
             retriever.name, tap->width, config.hidden);
    }
    const auto keys =
        std::find_if(geometry.keys.begin(), geometry.keys.end(), [&](const recorded_key_stream& s) {
          return s.layer == retriever.key_layer && s.tokens_per_key == config.tokens_per_key &&
                 (s.native() || s.window == config.key_window);
        });
    if (keys == geometry.keys.end()) {
      refuse("retriever '{}': no keys of layer {} with {} tokens a key and a window of {} were recorded",
             retriever.name, retriever.key_layer, config.tokens_per_key, config.key_window);
    }
    if (!keys->native() && keys->width != config.hidden) {
      refuse("retriever '{}': recorded key inputs have {} values, the dual encoder reads {}", retriever.name,
             keys->width, config.hidden);
    }
    if (keys->native() && keys->key_bytes != index_key_dim + 4) {
      refuse("retriever '{}': recorded keys have {} bytes, expected {}", retriever.name, keys->key_bytes,
             index_key_dim + 4);
    }
    const bool encoded = !keys->native();
    if (!query.empty() && encoded != trains_keys) {
      refuse("retriever '{}': some retrievers have keys of the model's, some encode them", retriever.name);
    }
    trains_keys = encoded;
    query.push_back(static_cast<std::size_t>(tap - geometry.queries.begin()));
    stream.push_back(static_cast<std::size_t>(keys - geometry.keys.begin()));
  }
}

encoder_shape shape_of(const dual_encoder_config& config, bool trains_keys) {
  encoder_shape shape;
  shape.hidden = config.hidden;
  shape.rank = config.rank;
  shape.heads = config.heads;
  shape.trains_keys = trains_keys;
  shape.q_norm_eps = static_cast<double>(config.q_norm_eps);
  shape.bf16_rounding = config.bf16_rounding;
  shape.key_scale_floor = static_cast<double>(config.key_scale_floor);
  shape.rope = config.rope;
  return shape;
}

dual_model::dual_model(const dual_encoder_config& c, const recording_geometry& geometry,
                       std::int64_t tokens_per_chunk)
    : config(dual_encoder_indexer(c).config()),  // checks it
      taps(config, geometry, tokens_per_chunk),
      shape(shape_of(config, taps.trains_keys)),
      map(shape) {
  if (taps.trains_keys == config.retrievers.front().wk.empty()) {
    refuse("{}", taps.trains_keys
                     ? "the dual encoder has no key encoder, but key encoder inputs were recorded"
                     : "the dual encoder has a key encoder, but the model's own keys were recorded");
  }
  parameters.resize(config.retrievers.size() * static_cast<std::size_t>(map.count));
  for (std::size_t r = 0; r < config.retrievers.size(); ++r) {
    read_parameters(shape, config.retrievers[r],
                    parameters.data() + static_cast<std::int64_t>(r) * map.count);
  }
}

dual_encoder_config dual_model::to_config(const std::vector<float>& values) const {
  dual_encoder_config out = config;
  for (std::size_t r = 0; r < out.retrievers.size(); ++r) {
    write_parameters(shape, values.data() + static_cast<std::int64_t>(r) * map.count, out.retrievers[r]);
  }
  return out;
}

training_batch batch_of(const model_taps& taps, const example& from,
                        const std::vector<std::int64_t>& windows) {
  training_batch batch;
  batch.rows = windows;
  batch.queries = &from.queries;
  batch.keys = &from.keys;
  for (const std::int64_t w : windows) {
    batch.positions.push_back(from.positions[static_cast<std::size_t>(w)]);
    batch.chunks =
        std::max<std::int64_t>(batch.chunks, from.labels[static_cast<std::size_t>(w)].end_candidate);
  }
  const std::int64_t count = batch.chunks * taps.keys_per_chunk;
  for (const std::size_t stream : taps.stream) {
    const document_keys& keys = from.keys[stream];
    if (keys.keys >= count) continue;
    throw format_error(status::index_keys_missing,
                       formatted("document '{}': index-key lane {} has {} keys, {} chunks need {}", from.name,
                                 stream, keys.keys, batch.chunks, count));
  }
  return batch;
}

void document_batch::fill(const encoder_shape& shape, const model_taps& taps, const example& from,
                          const std::vector<std::int64_t>& windows) {
  fill(shape, taps, batch_of(taps, from, windows));
}

void document_batch::fill(const encoder_shape& shape, const model_taps& taps, const training_batch& batch) {
  windows_ = batch.windows();
  keys_per_chunk_ = taps.keys_per_chunk;
  trains_keys_ = taps.trains_keys;
  positions_ = batch.positions;
  chunks_ = batch.chunks;
  hidden_.resize(batch.queries->size());
  for (const std::size_t tap : std::set<std::size_t>(taps.query.begin(), taps.query.end())) {
    std::vector<float>& rows = hidden_[tap];
    rows.resize(batch.rows.size() * static_cast<std::size_t>(shape.hidden));
    for (std::size_t w = 0; w < batch.rows.size(); ++w) {
      (*batch.queries)[tap].read(batch.rows[w], rows.data() + w * static_cast<std::size_t>(shape.hidden));
    }
  }
  const std::int64_t count = chunks_ * taps.keys_per_chunk;
  keys_.resize(batch.keys->size());
  for (const std::size_t stream : std::set<std::size_t>(taps.stream.begin(), taps.stream.end())) {
    const document_keys& keys = (*batch.keys)[stream];
    std::vector<float>& rows = keys_[stream];
    const std::int64_t width = trains_keys_ ? shape.hidden : index_key_dim;
    rows.resize(static_cast<std::size_t>(count * width));
    for (std::int64_t k = 0; k < count; ++k) {
      float* row = rows.data() + k * width;
      if (trains_keys_) {
        keys.inputs.read(k, row);
        continue;
      }
      const std::byte* stored = keys.native.data() + k * (index_key_dim + 4);
      float scale;
      std::memcpy(&scale, stored + index_key_dim, sizeof scale);
      for (std::int32_t i = 0; i < index_key_dim; ++i) {
        row[i] = from_e4m3(std::to_integer<std::uint8_t>(stored[i])) * scale;
      }
    }
  }
}

encoder_input<float> document_batch::input(std::size_t retriever, const model_taps& taps) const noexcept {
  encoder_input<float> in;
  in.windows = windows_;
  in.hidden = hidden_[taps.query[retriever]].data();
  in.positions = positions_.data();
  in.chunks = chunks_;
  in.keys_per_chunk = keys_per_chunk_;
  const std::vector<float>& keys = keys_[taps.stream[retriever]];
  (trains_keys_ ? in.key_inputs : in.keys) = keys.data();
  return in;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
