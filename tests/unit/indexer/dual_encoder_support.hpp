// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/reference/indexer.hpp"
#include "tests/reference/key_store.hpp"

namespace flashmemory_test {

namespace fm = flashmemory;

inline std::vector<float> normals(std::mt19937& random, std::int64_t count, double scale = 1) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& v : values) v = normal(random) * float(scale);
  return values;
}

/// Random weights whose logits come out around one.
inline fm::dual_encoder_config random_config(std::mt19937& random, std::int32_t hidden, std::int32_t rank,
                                             std::int32_t heads, std::int32_t retrievers, bool with_keys) {
  fm::dual_encoder_config c;
  c.hidden = hidden;
  c.rank = rank;
  c.heads = heads;
  for (std::int32_t r = 0; r < retrievers; ++r) {
    fm::retriever_weights w;
    w.name = "r" + std::to_string(r);
    w.query_layer = r / 2;
    w.key_layer = r;
    w.wq_a = normals(random, std::int64_t{rank} * hidden, 1 / std::sqrt(hidden));
    w.q_norm = normals(random, rank);
    w.wq_b = normals(random, std::int64_t{heads} * 128 * rank, 1 / std::sqrt(rank));
    w.weights_proj = normals(random, std::int64_t{heads} * hidden, 1 / std::sqrt(hidden));
    if (with_keys) w.wk = normals(random, std::int64_t{128} * hidden, 1 / std::sqrt(hidden));
    w.logit_offset = normals(random, 1)[0];
    c.retrievers.push_back(std::move(w));
  }
  return c;
}

inline std::vector<std::byte> random_keys(std::mt19937& random, std::int64_t count) {
  std::vector<std::byte> keys(static_cast<std::size_t>(count) * 132);
  for (std::int64_t i = 0; i < count; ++i) {
    fm::quantise_key(normals(random, 128).data(), keys.data() + i * 132, 1e-4f);
  }
  return keys;
}

inline void set_scale(std::vector<std::byte>& keys, std::int64_t key, float scale) {
  std::memcpy(keys.data() + key * 132 + 128, &scale, sizeof scale);
}

struct scratch_memory {
  explicit scratch_memory(std::size_t bytes) : memory(bytes + 64) {
    void* at = memory.data();
    std::size_t room = memory.size();
    scratch = {std::align(64, bytes, at, room), bytes};
  }
  explicit scratch_memory(const fm::indexer& index) : scratch_memory(index.workspace_bytes({}, 0, 0)) {}
  std::vector<std::byte> memory;
  fm::workspace scratch;
};

/// Runs tasks in reverse order, to show that order does not matter.
inline fm::thread_hook backwards() {
  fm::thread_hook hook;
  hook.run = [](void*, std::int32_t count, void (*task)(void*, std::int32_t), void* context) {
    while (count > 0) task(context, --count);
  };
  hook.concurrency = 3;
  return hook;
}

/// score() over a store of `streams`, all retrievers reading the vectors in `queries` by tap.
struct scoring {
  fm::reference::key_store store;
  std::vector<const float*> queries;
  fm::score_request request;

  scoring(const fm::kv_geometry& geometry, const std::vector<std::vector<std::byte>>& streams,
          std::vector<const float*> by_tap, std::int64_t chunks, std::int64_t position = 12345)
      : store(geometry, streams), queries(std::move(by_tap)) {
    request.reader = &store;
    request.position = position;
    request.chunks = chunks;
    request.queries = queries.data();
  }
  scoring(const scoring&) = delete;

  fm::status run(fm::dual_encoder_indexer& index, std::vector<float>& scores,
                 fm::thread_hook threads = fm::serial_threads()) {
    const scratch_memory memory(index);
    scores.assign(static_cast<std::size_t>(request.chunks), -77.0f);
    request.scratch = memory.scratch;
    request.threads = threads;
    return index.score(request, fm::view<float, 1>(scores.data(), scores.size()));
  }
};

}  // namespace flashmemory_test
