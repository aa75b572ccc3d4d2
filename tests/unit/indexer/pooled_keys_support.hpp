// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/error.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/indexer/pooled_keys.hpp>
#include <memory>
#include <random>
#include <vector>

#include "tests/reference/key_store.hpp"
#include "tests/reference/pooled_keys.hpp"

namespace flashmemory_test {

namespace fm = flashmemory;

struct pooled_shape {
  std::int32_t layers = 2, kv_heads = 2, group = 2, key_dim = 32;
  std::int32_t dim = 0;  ///< not key_dim: projections
  std::int32_t tokens_per_key = 4, keys_per_chunk = 4, query_tokens = 3;
  fm::index_key_type type = fm::index_key_type::int8;
  fm::index_key_layout layout = fm::index_key_layout::interleaved;
  std::int64_t chunks = 17;
};

/// A model's K and queries at random, the index keys that its indexer makes of them, and a reader of these.
class pooled_problem {
 public:
  pooled_problem(const pooled_shape& s, std::uint32_t seed) : shape(s), random(seed) {
    geometry.layers = s.layers;
    geometry.kv_heads = s.kv_heads;
    geometry.key_dim = geometry.value_dim = s.key_dim;
    geometry.entries_per_chunk = s.keys_per_chunk * s.tokens_per_key;
    std::vector<std::int32_t> layers;
    for (std::int32_t l = 0; l < s.layers; ++l) layers.push_back(l);
    config = fm::pooled_keys_of(geometry, s.kv_heads * s.group, layers);
    config.dim = s.dim;
    config.tokens_per_key = s.tokens_per_key;
    config.type = s.type;
    config.query_tokens = s.query_tokens;
    if (s.dim != 0)
      for (auto& lane : config.lanes) {
        lane.key_projection = values(std::int64_t{s.dim} * s.key_dim, 1 / std::sqrt(float(s.key_dim)));
        if (lane.layer % 2 == 0)
          lane.query_projection = values(std::int64_t{s.dim} * s.key_dim, 1 / std::sqrt(float(s.key_dim)));
      }
    const std::int64_t tokens = s.chunks * geometry.entries_per_chunk;
    for (std::int32_t l = 0; l < s.layers; ++l) {
      k.push_back(values(tokens * s.kv_heads * s.key_dim, 1));
      q.push_back(values(std::int64_t{s.query_tokens} * s.kv_heads * s.group * s.key_dim, 2));
    }
  }

  /// After changes to the configuration, K and queries.
  void build() {
    index = std::make_unique<fm::pooled_keys_indexer>(config);
    geometry.index_keys = index->taps().reads;
    geometry.index_keys.layout = shape.layout;
    lanes.clear();
    for (std::int32_t l = 0; l < geometry.index_keys.lanes; ++l) lanes.push_back(encoded(l));
    reader = std::make_unique<fm::reference::key_store>(geometry, lanes);
  }
  std::vector<std::byte> encoded(std::int32_t lane) const {
    const auto& rows = k[std::size_t(config.lanes[std::size_t(lane)].layer)];
    const std::int64_t width = std::int64_t{shape.kv_heads} * shape.key_dim;
    const std::int64_t tokens = std::int64_t(rows.size()) / width, keys = tokens / shape.tokens_per_key;
    std::vector<std::byte> out(std::size_t(keys * geometry.index_keys.bytes()));
    if (index->encode_index_keys(lane, fm::view<const float, 2>(rows.data(), tokens, width),
                                 fm::view<std::byte, 2>(out.data(), keys, geometry.index_keys.bytes()), {},
                                 fm::default_threads()) != fm::status::ok)
      out.clear();
    return out;
  }
  fm::score_request request() {
    queries.clear();
    for (const auto& tap : index->taps().queries) queries.push_back(q[std::size_t(tap.layer)].data());
    scratch.resize(index->workspace_bytes(geometry, shape.chunks, 0));
    fm::score_request r;
    r.reader = reader.get();
    r.chunks = shape.chunks;
    r.queries = queries.data();
    r.scratch = {scratch.data(), scratch.size()};
    return r;
  }
  fm::status score(std::vector<float>& out, const fm::thread_hook* threads = nullptr) {
    fm::score_request r = request();
    if (threads != nullptr) r.threads = *threads;
    out.assign(std::size_t(shape.chunks), -7.0f);
    return index->score(r, fm::view<float, 1>(out.data(), shape.chunks));
  }
  /// By the reference, of the keys that are stored.
  std::vector<double> needs() const {
    std::vector<std::vector<std::vector<double>>> keys(lanes.size());
    std::vector<const float*> of_lane;
    const auto bytes = std::size_t(geometry.index_keys.bytes());
    for (std::size_t l = 0; l < lanes.size(); ++l) {
      for (std::size_t at = 0; at < lanes[l].size(); at += bytes)
        keys[l].push_back(fm::reference::index_key_values(geometry.index_keys, lanes[l].data() + at));
      of_lane.push_back(q[std::size_t(config.lanes[l].layer)].data());
    }
    return fm::reference::pooled_needs(config, of_lane, keys, std::size_t(shape.chunks),
                                       std::size_t(geometry.index_keys_per_chunk()));
  }
  std::vector<float> values(std::int64_t count, float scale) {
    std::normal_distribution<float> normal;
    std::vector<float> out(std::size_t(count), 0.0f);
    for (float& x : out) x = scale * normal(random);
    return out;
  }

  pooled_shape shape;
  std::mt19937 random;
  fm::kv_geometry geometry;
  fm::pooled_keys_config config;
  std::vector<std::vector<float>> k,
      q;  ///< per layer: [tokens, kv_heads, key_dim], [query_tokens, heads, key_dim]
  std::vector<std::vector<std::byte>> lanes;
  std::unique_ptr<fm::pooled_keys_indexer> index;
  std::unique_ptr<fm::reference::key_store> reader;
  std::vector<const float*> queries;
  std::vector<std::byte> scratch;
};

}  // namespace flashmemory_test
