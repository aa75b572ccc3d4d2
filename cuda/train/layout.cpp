// SPDX-License-Identifier: MIT
#include "cuda/train/layout.hpp"

#include <algorithm>
#include <flashmemory/indexer/index_key.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

constexpr std::int64_t dim = index_key_dim;

template <class Move>
void each_tensor(const train::encoder_shape& s, const Move& move) {
  const train::parameter_map flat(s);
  const device_parameters to(s);
  const auto rows = [&](std::int64_t from, std::int64_t at, std::int64_t count, std::int64_t width,
                        std::int64_t stride) {
    for (std::int64_t i = 0; i < count; ++i) move(from + i * width, at + i * stride, width);
  };
  rows(flat.wq_a, to.first, s.rank, s.hidden, to.hidden);
  rows(flat.weights_proj, to.first + to.rank * to.hidden, s.heads, s.hidden, to.hidden);
  rows(flat.wq_b, to.wq_b, s.heads * dim, s.rank, to.rank);
  if (s.trains_keys) rows(flat.wk, to.wk, dim, s.hidden, to.hidden);
  rows(flat.q_norm, to.q_norm, 1, s.rank, to.rank);
  rows(flat.offset, to.offset, 1, 1, 1);
}

}  // namespace

device_parameters::device_parameters(const train::encoder_shape& s) noexcept
    : hidden(padded(s.hidden)), rank(padded(s.rank)), heads(padded(s.heads)) {
  // 128 values: products may then assume operands at multiples of 256 bytes.
  wq_b = padded(first_rows() * hidden, 128);
  matrices = wk = padded(wq_b + s.heads * dim * rank, 128);
  q_norm = wk + (s.trains_keys ? padded(dim * hidden, 128) : 0);
  offset = q_norm + padded(rank, 128);
  count = offset + 128;
}

void to_device_form(const train::encoder_shape& shape, const float* flat, float* device) {
  std::fill_n(device, device_parameters(shape).count, 0.0f);
  each_tensor(shape, [&](std::int64_t from, std::int64_t at, std::int64_t count) {
    std::copy_n(flat + from, count, device + at);
  });
}

void from_device_form(const train::encoder_shape& shape, const float* device, float* flat) {
  each_tensor(shape, [&](std::int64_t from, std::int64_t at, std::int64_t count) {
    std::copy_n(device + at, count, flat + from);
  });
}

std::vector<std::size_t> streams_of(const train::backend_setup& setup, std::vector<std::int64_t>* place) {
  std::vector<std::size_t> streams = setup.stream;
  std::sort(streams.begin(), streams.end());
  streams.erase(std::unique(streams.begin(), streams.end()), streams.end());
  if (place != nullptr) {
    place->clear();
    for (const std::size_t s : setup.stream) {
      place->push_back(std::lower_bound(streams.begin(), streams.end(), s) - streams.begin());
    }
  }
  return streams;
}

device_workspace::device_workspace(const train::backend_setup& setup, std::int64_t true_windows,
                                   std::int64_t chunks, std::size_t tile_bytes) {
  const train::encoder_shape& s = setup.shape;
  const device_parameters map(s);
  const std::int64_t operand = s.operands == train::precision::bf16 ? 2 : 4;
  const std::int64_t retrievers = setup.retrievers();
  const auto streams = static_cast<std::int64_t>(streams_of(setup).size());
  const std::int64_t width = s.heads * dim;
  windows = padded(true_windows);
  keys = padded(chunks * setup.keys_per_chunk, 64);
  const std::int64_t pairs_count = retrievers * chunks * true_windows;
  const auto take = [&](std::int64_t values, std::int64_t size) {
    const std::size_t at = bytes;
    bytes += static_cast<std::size_t>(padded(values * size, 256));
    return at;
  };
  hidden = take(retrievers * windows * map.hidden, operand);
  inputs = take(s.trains_keys ? streams * keys * map.hidden : 0, operand);
  first = take(retrievers * windows * map.first_rows(), 4);
  root = take(retrievers * windows, 4);
  gates = take(retrievers * s.heads * windows, 4);
  normed = take(retrievers * windows * map.rank, operand);
  flat = take(retrievers * windows * width, 4);
  queries = take(retrievers * windows * width, operand);
  key_map = take(s.trains_keys ? retrievers * dim * map.hidden : 0, operand);
  keys_at = take(retrievers * keys * dim, operand);
  scores = take(pairs_count, 4);
  where = take(pairs_count, 4);
  pairs = take(pairs_count * s.heads, 4);
  d_flat = take(retrievers * windows * width, operand);
  d_first = take(retrievers * windows * map.first_rows(), operand);
  d_low = take(retrievers * windows * map.rank, 4);
  d_keys = take(s.trains_keys ? retrievers * keys * dim : 0, operand);
  d_map = take(s.trains_keys ? retrievers * dim * map.hidden : 0, 4);
  turns = take(true_windows * 64, 4);
  partial = take(partial_sums + 1, 8);

  const auto budget = static_cast<std::int64_t>(tile_bytes);
  const std::int64_t of_chunk = retrievers * setup.keys_per_chunk * s.heads * windows * 4;
  const std::int64_t most = std::clamp<std::int64_t>(chunks, 1, 65535);  // of a grid's second extent
  tile_chunks = std::clamp<std::int64_t>(budget / of_chunk, 1, most);
  const std::int64_t of_join = retrievers * true_windows * dim * 4;
  join_chunks = std::clamp<std::int64_t>(budget / of_join, 1, most);
  const std::int64_t raw =
      std::max(retrievers * true_windows * s.hidden * 4, keys * (s.trains_keys ? s.hidden * 4 : dim + 4));
  const std::int64_t unrounded = s.trains_keys ? keys * dim * 4 : 0;
  tile = take(std::max({tile_chunks * of_chunk, join_chunks * of_join, raw, unrounded}), 1);
  product = bytes;
  bytes += product_bytes;
}

}  // namespace detail

std::size_t training_state_bytes(const train::backend_setup& setup) {
  const detail::device_parameters map(setup.shape);
  const std::int64_t all = setup.retrievers() * map.count * 4 * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t copies =
      setup.shape.operands == train::precision::bf16 ? setup.retrievers() * map.matrices * 2 : 0;
  return static_cast<std::size_t>(all + copies);
}

std::size_t training_workspace_bytes(const train::backend_setup& setup, std::int64_t windows,
                                     std::int64_t chunks, const training_options& options) {
  return detail::device_workspace(setup, windows, chunks, options.tile_bytes).bytes;
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
