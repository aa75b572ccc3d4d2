// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/c/flashmemory.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "tests/catch.hpp"

namespace c_testing {

/// A tensor in host memory, f32 unless said otherwise.
struct host_tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
  fm_tensor t{};

  explicit host_tensor(std::initializer_list<std::int64_t> extents, float start = 0) : shape(extents) {
    std::int64_t n = 1;
    for (const auto e : shape) n *= e;
    values.resize(std::size_t(n));
    std::uint32_t x = 1;
    for (float& v : values) {
      x = x * 1664525u + 1013904223u;
      v = start + float(std::int32_t(x)) * 0x1p-31f;
    }
    t.data = values.data();
    t.device.device_type = FM_CPU;
    t.ndim = std::int32_t(shape.size());
    t.dtype.code = FM_FLOAT;
    t.dtype.bits = 32;
    t.dtype.lanes = 1;
    t.shape = shape.data();
  }
  host_tensor(const host_tensor&) = delete;
  host_tensor& operator=(const host_tensor&) = delete;
};

inline fm_fault last() {
  fm_fault f;
  fm_last_fault(&f);
  return f;
}

/// 2 layers, 2 KV heads of 16, chunks of 8 tokens, f32.
inline fm_store_options small_store(std::int32_t sequences = 4) {
  fm_store_options o;
  REQUIRE(fm_init_store_options(&o, sizeof(o)) == FM_OK);
  o.layers = 2;
  o.kv_heads = 2;
  o.key_dim = o.value_dim = 16;
  o.type = FM_F32;
  o.entries_per_chunk = 8;
  o.fast_bytes = 8 << 20;
  o.backing_bytes = 8 << 20;
  o.max_sequences = sequences;
  return o;
}

inline fm_policy small_policy() {
  fm_policy p;
  REQUIRE(fm_init_policy(&p, sizeof(p)) == FM_OK);
  p.interval = 8;
  p.budget_fraction = 0.3;
  return p;
}

/// Everything that decoding by recency needs. Closes what is still open.
struct world {
  fm_store* store = nullptr;
  fm_indexer* index = nullptr;
  fm_selector* select = nullptr;
  fm_attention* attention = nullptr;
  fm_sequence sequence{};
  std::int64_t tokens = 0;

  explicit world(fm_score_callback score = nullptr, void* context = nullptr,
                 const fm_threads* threads = nullptr) {
    const fm_store_options so = small_store();
    const fm_policy policy = small_policy();
    REQUIRE(fm_store_open(&so, &store) == FM_OK);
    if (score) {
      const fm_query_tap tap = {1, 1, 64};
      REQUIRE(fm_indexer_callback(score, context, &tap, 1, 0, &index) == FM_OK);
    } else {
      REQUIRE(fm_indexer_recency(&index) == FM_OK);
    }
    fm_selector_options options;
    REQUIRE(fm_init_selector_options(&options, sizeof(options)) == FM_OK);
    options.stagger = 0;
    options.threads.concurrency = 1;
    REQUIRE(fm_selector_open(store, index, &policy, &options, &select) == FM_OK);
    fm_attention_options ao;
    REQUIRE(fm_init_attention_options(&ao, sizeof(ao)) == FM_OK);
    ao.query_heads = 4;
    ao.max_tokens = 64;
    ao.max_chunks = 64;
    ao.threads.concurrency = 1;
    if (threads) ao.threads = *threads;
    REQUIRE(fm_attention_open(store, &ao, &attention) == FM_OK);
    fm_sequence_options each;
    REQUIRE(fm_init_sequence_options(&each, sizeof(each)) == FM_OK);
    REQUIRE(fm_sequence_options_for(store, &policy, 400, 0, &each) == FM_OK);
    REQUIRE(fm_sequence_open(store, &each, &sequence) == FM_OK);
    REQUIRE(fm_attach(select, sequence, nullptr) == FM_OK);
  }
  ~world() {
    if (attention) fm_attention_close(attention);
    if (select) fm_selector_close(select);
    if (store) fm_store_close(store);
    if (index) fm_indexer_close(index);
  }
  world(const world&) = delete;
  world& operator=(const world&) = delete;

  fm_batch_item item(std::int32_t count, std::int32_t phase = FM_DECODE) const {
    return {sequence, tokens, count, phase};
  }

  /// One pass; `out` is that of the last layer. The first call that does not return FM_OK ends it.
  fm_status pass(std::int32_t count, host_tensor* out = nullptr, std::int32_t phase = FM_DECODE) {
    const fm_batch_item one = item(count, phase);
    fm_attend_options how;
    if (const auto code = fm_init_attend_options(&how, sizeof(how))) return code;
    how.everything = phase != FM_DECODE;
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      host_tensor q({count, 4, 16}, float(tokens % 7)), k({count, 2, 16}, float(layer)), v({count, 2, 16}),
          mine({count, 4, 16});
      host_tensor& to = out ? *out : mine;
      std::int64_t flat[2] = {count, 64};
      fm_tensor queries = q.t;
      queries.ndim = 2;
      queries.shape = flat;
      if (const auto code = fm_observe_queries(select, &one, 1, layer, &queries, nullptr)) return code;
      if (const auto code = fm_append(store, &one, 1, layer, &k.t, &v.t, nullptr)) return code;
      if (const auto code = fm_sparse_attend(attention, &one, 1, layer, &q.t, &to.t, &how, nullptr))
        return code;
    }
    tokens += count;
    return fm_select_chunks(select, &one, 1, nullptr);
  }
};

}  // namespace c_testing
