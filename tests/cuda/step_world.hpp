// SPDX-License-Identifier: MIT
#pragma once

#include <cstring>
#include <flashmemory/cuda/decode_step.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/error.hpp>
#include <memory>
#include <random>
#include <vector>

#include "tests/catch.hpp"
#include "tests/cuda/gpu.hpp"
#include "tests/cuda/store_device.hpp"

/// A small engine on the device: its tensors are windows of one block of random numbers, chosen by step, so that two
/// of them can be fed the same.
namespace step_testing {

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using flashmemory_test::device_array;
using flashmemory_test::device_stream;
using flashmemory_test::must;
using fm::status;

inline constexpr std::int32_t hidden_size = 32, query_heads = 4;

inline fm::kv_geometry geometry() {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = 2;
  g.key_dim = 64;
  g.value_dim = 64;
  g.type = fm::dtype::bf16;
  g.entries_per_chunk = 16;
  g.index_keys.lanes = 2;
  g.index_keys.tokens_per_key = 4;
  g.index_keys.layout = fm::index_key_layout::planar;
  return g;
}

/// Two retrievers; with `own_keys` the model has index keys of its own, else the indexer encodes them.
inline fm::dual_encoder_config indexer_config(std::uint32_t seed, bool own_keys,
                                              std::int32_t hidden = hidden_size) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto noise = [&](std::int64_t count) {
    std::vector<float> values(std::size_t(count), 0.0f);
    for (float& x : values) x = normal(random);
    return values;
  };
  fm::dual_encoder_config c;
  c.hidden = hidden;
  c.rank = 16;
  c.heads = 4;
  c.key_window = 10;
  c.rope.dim = 64;
  c.rope.max_positions = 4096;
  for (std::int32_t r = 0; r < 2; ++r) {
    fm::retriever_weights w;
    w.name = "l" + std::to_string(r);
    w.query_layer = r;
    w.key_layer = 1 - r;
    w.wq_a = noise(std::int64_t{c.rank} * hidden);
    w.q_norm = noise(c.rank);
    w.wq_b = noise(std::int64_t{c.heads} * 128 * c.rank);
    w.weights_proj = noise(std::int64_t{c.heads} * hidden);
    if (!own_keys) w.wk = noise(std::int64_t{128} * hidden);
    w.logit_offset = 0.25f * float(r);
    c.retrievers.push_back(std::move(w));
  }
  return c;
}

/// Device numbers that everybody reads.
class number_pool {
 public:
  explicit number_pool(std::uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> f(size);
    for (float& x : f) x = normal(random);
    std::vector<std::uint16_t> h(size);
    for (std::size_t i = 0; i < size; ++i) {
      std::uint32_t bits;
      std::memcpy(&bits, &f[i], 4);
      h[i] = std::uint16_t(bits >> 16);
    }
    // Finite e4m3 codes with scales around one.
    std::vector<std::byte> k(132 * 4096);
    for (std::size_t i = 0; i < 4096; ++i) {
      for (std::size_t b = 0; b < 128; ++b) k[i * 132 + b] = std::byte((random() & 0x80) | random() % 0x50);
      const float scale = 0.01f + 1e-5f * float(random() % 1000);
      std::memcpy(&k[i * 132 + 128], &scale, 4);
    }
    floats_ = device_array<float>(f);
    halves_ = device_array<std::uint16_t>(h);
    keys_ = device_array<std::byte>(k);
  }
  /// A window of `count` numbers, 16-byte aligned.
  const float* floats(std::uint64_t at, std::int64_t count) const {
    return floats_.data() + offset(at, count);
  }
  const std::uint16_t* halves(std::uint64_t at, std::int64_t count) const {
    return halves_.data() + offset(at, count);
  }
  const std::byte* keys(std::uint64_t at, std::int64_t count) const {
    return keys_.data() + (at * 7 % std::uint64_t(4096 - count)) * 132;
  }

 private:
  static constexpr std::size_t size = std::size_t{1} << 20;
  static std::size_t offset(std::uint64_t at, std::int64_t count) {
    return std::size_t(at * 2654435761u % (size - std::size_t(count)) / 8 * 8);
  }
  device_array<float> floats_;
  device_array<std::uint16_t> halves_;
  device_array<std::byte> keys_;
};

struct world_options {
  std::int32_t rows = 6;
  std::int32_t tokens = 1;
  bool own_keys = false;
  bool captured = false;
  fm::selector_options select;
  cu::context device;
  store_testing::transfer_switches* control = nullptr;  ///< for copies that are late or fail
  std::int64_t max_tokens = 600;
  std::int32_t staging_steps = 4;
  std::chrono::milliseconds deadline{20000};  ///< far above what a step takes under a tool that looks on
};

/// Store, selector and decode step, driven eagerly or by a graph that was captured once.
class world {
 public:
  struct sequence {
    fm::sequence_handle handle;
    std::int64_t tokens = 0;
  };

  world(const number_pool& pool, const world_options& o, std::uint32_t seed) : pool_(pool), options_(o) {
    policy.interval = 16;
    policy.budget_fraction = 0.3;
    fm::store_options s;
    s.geometry = geometry();
    s.fast_bytes = std::size_t{256} << 20;
    s.backing_bytes = std::size_t{256} << 20;
    s.max_sequences = 80;
    cu::context device = o.device;
    device.deadline = o.deadline;
    store = o.control != nullptr ? store_testing::make_device_store(s, o.control, device)
                                 : cu::make_store(s, device);
    fm::selector_options so = o.select;
    so.max_sequences = 80;
    select = cu::make_selector(*store, indexer_config(seed, o.own_keys), policy, so);
    cu::decode_step_options d;
    d.rows = o.rows;
    d.tokens = o.tokens;
    d.max_chunks = 64;
    d.query_heads = query_heads;
    d.staging_steps = o.staging_steps;
    step = std::make_unique<cu::decode_step>(*store, select.get(), d);
    const auto g = geometry();
    const std::int64_t rows = std::int64_t{o.rows} * o.tokens;
    entries_ = std::int64_t{o.rows} * step->entries_per_row();
    keys_rows_ = std::int64_t{o.rows} * step->index_keys_per_row();
    hidden_ = device_array<std::uint16_t>(std::size_t(g.layers * rows * hidden_size));
    q_ = device_array<std::uint16_t>(std::size_t(g.layers * rows * query_heads * g.key_dim));
    k_ = device_array<std::uint16_t>(std::size_t(g.layers * entries_ * g.kv_heads * g.key_dim));
    v_ = device_array<float>(std::size_t(g.layers * entries_ * g.kv_heads * g.value_dim));
    keys_ = device_array<std::byte>(std::size_t(g.index_keys.lanes * keys_rows_ * 132));
    out_ = device_array<float>(std::size_t(g.layers * rows * query_heads * g.value_dim));
    if (o.captured) capture();
  }
  ~world() {
    cudaStreamSynchronize(stream.get());
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }

  sequence open() {
    sequence s;
    s.handle = store->open(fm::sequence_options_for(policy, geometry(), options_.max_tokens));
    select->attach(s.handle);
    return s;
  }
  void close(sequence& s) {
    select->detach(s.handle);
    REQUIRE(store->close(s.handle) == status::ok);
  }

  /// A prompt, as an engine's own pass.
  void prefill(sequence& s, std::int64_t tokens, std::uint64_t at) {
    const auto g = geometry();
    const fm::batch_item item{s.handle, s.tokens, std::int32_t(tokens)};
    const fm::batch batch(&item, 1);
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      const std::uint64_t here = at + std::uint64_t(layer) * 31;
      REQUIRE(select->observe(batch, layer,
                              fm::const_tensor<2>(pool_.halves(here, tokens * hidden_size), fm::dtype::bf16,
                                                  tokens, hidden_size),
                              stream.ref()) == status::ok);
      REQUIRE(store->append(batch, layer,
                            fm::const_tensor<3>(pool_.halves(here + 1, tokens * g.kv_heads * g.key_dim),
                                                fm::dtype::bf16, tokens, g.kv_heads, g.key_dim),
                            fm::const_tensor<3>(pool_.floats(here + 2, tokens * g.kv_heads * g.value_dim),
                                                fm::dtype::f32, tokens, g.kv_heads, g.value_dim),
                            stream.ref()) == status::ok);
    }
    if (options_.own_keys)
      for (std::int32_t k = 0; k < g.index_keys.lanes; ++k) {
        const std::int64_t count = (s.tokens + tokens) / 4 - s.tokens / 4;
        REQUIRE(store->append_index_keys(
                    s.handle, k, s.tokens / 4,
                    fm::view<const std::byte, 2>(pool_.keys(at + std::uint64_t(k), count), count, 132),
                    stream.ref()) == status::ok);
      }
    s.tokens += tokens;
    REQUIRE(fm::select_chunks(*select, batch, stream.ref()) == status::ok);
  }

  /// Brings the tensors of a step to where the kernels read them.
  void feed(std::uint64_t at) {
    const auto copy = [&](void* to, const void* from, std::size_t bytes) {
      must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream.get()));
    };
    copy(hidden_.data(), pool_.halves(at, std::int64_t(hidden_.size())), hidden_.bytes());
    copy(q_.data(), pool_.halves(at + 1, std::int64_t(q_.size())), q_.bytes());
    copy(k_.data(), pool_.halves(at + 2, std::int64_t(k_.size())), k_.bytes());
    copy(v_.data(), pool_.floats(at + 3, std::int64_t(v_.size())), v_.bytes());
    copy(keys_.data(), pool_.keys(at + 4, std::int64_t(keys_.size()) / 132), keys_.bytes());
  }

  /// The launches of a step; first failure or ok.
  status launches() {
    const auto g = geometry();
    const std::int64_t rows = std::int64_t{options_.rows} * options_.tokens;
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      status code = step->observe(layer,
                                  fm::const_tensor<2>(hidden_.data() + layer * rows * hidden_size,
                                                      fm::dtype::bf16, rows, hidden_size),
                                  stream.ref());
      if (code != status::ok) return code;
      code = step->append(layer,
                          fm::const_tensor<3>(k_.data() + layer * entries_ * g.kv_heads * g.key_dim,
                                              fm::dtype::bf16, entries_, g.kv_heads, g.key_dim),
                          fm::const_tensor<3>(v_.data() + layer * entries_ * g.kv_heads * g.value_dim,
                                              fm::dtype::f32, entries_, g.kv_heads, g.value_dim),
                          stream.ref());
      if (code != status::ok) return code;
      code = step->attend(layer,
                          fm::const_tensor<3>(q_.data() + layer * rows * query_heads * g.key_dim,
                                              fm::dtype::bf16, rows, query_heads, g.key_dim),
                          fm::tensor<3>(out_.data() + layer * rows * query_heads * g.value_dim,
                                        fm::dtype::f32, rows, query_heads, g.value_dim),
                          {}, stream.ref());
      if (code != status::ok) return code;
    }
    if (options_.own_keys)
      for (std::int32_t k = 0; k < g.index_keys.lanes; ++k)
        if (const status code = step->append_index_keys(
                k, fm::view<const std::byte, 2>(keys_.data() + k * keys_rows_ * 132, keys_rows_, 132),
                stream.ref());
            code != status::ok)
          return code;
    return status::ok;
  }

  /// One whole step of the sequences in `rows`; null = an empty row.
  status decode(const std::vector<sequence*>& rows, std::uint64_t at) {
    items.clear();
    live.clear();
    for (const sequence* s : rows) {
      items.push_back(s == nullptr ? fm::batch_item{}
                                   : fm::batch_item{s->handle, s->tokens, options_.tokens});
      if (s != nullptr) live.push_back(items.back());
    }
    feed(at);
    if (const status code = step->prepare(fm::batch(items.data(), items.size()), stream.ref());
        code != status::ok)
      return code;
    if (graph_ != nullptr)
      must(cudaGraphLaunch(graph_, stream.get()));
    else if (const status code = launches(); code != status::ok)
      return code;
    if (const status code = step->finish(stream.ref()); code != status::ok) return code;
    for (sequence* s : rows)
      if (s != nullptr) s->tokens += options_.tokens;
    return fm::select_chunks(*select, fm::batch(live.data(), live.size()), stream.ref());
  }

  const std::vector<float>& outputs() {
    host_.resize(out_.size());
    must(cudaMemcpyAsync(host_.data(), out_.data(), out_.bytes(), cudaMemcpyDeviceToHost, stream.get()));
    stream.wait();
    return host_;
  }
  std::vector<fm::chunk_id> resident(const sequence& s) const {
    fm::resident_set set;
    REQUIRE(store->resident(s.handle, 0, &set) == status::ok);
    std::vector<fm::chunk_id> ids;
    for (std::int64_t c = 0; c < set.count; ++c) ids.push_back(set.chunks[c].id);
    return ids;
  }
  /// Every chunk's bytes and all index keys.
  std::vector<std::byte> contents(const sequence& s) {
    const auto g = geometry();
    const std::size_t chunk = fm::chunk_layout(g).chunk_bytes();
    const auto chunks = std::size_t(g.chunks_for(s.tokens));
    std::vector<std::byte> bytes(chunks * chunk);
    stream.wait();
    for (std::size_t c = 0; c < chunks; ++c)
      REQUIRE(store->read_chunk(s.handle, fm::chunk_id(c),
                                fm::view<std::byte, 1>(bytes.data() + c * chunk, chunk)) == status::ok);
    for (std::int32_t k = 0; k < g.index_keys.lanes; ++k) {
      fm::index_key_pages pages;
      REQUIRE(store->index_keys(s.handle, k, &pages) == status::ok);
      REQUIRE(pages.keys == s.tokens / 4);
      const auto per_page = g.index_keys_per_chunk();
      const auto all = (pages.keys + per_page - 1) / per_page * per_page * 132;
      const std::size_t at = bytes.size();
      bytes.resize(at + std::size_t(all));
      must(cudaMemcpy(bytes.data() + at, pages.data, std::size_t(all), cudaMemcpyDeviceToHost));
    }
    return bytes;
  }

  fm::selection_policy policy;
  device_stream stream;
  std::unique_ptr<fm::tiered_chunk_store> store;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<cu::decode_step> step;
  std::vector<fm::batch_item> items, live;

 private:
  void capture() {
    cudaGraph_t graph = nullptr;
    must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    const status code = launches();
    must(cudaStreamEndCapture(stream.get(), &graph));
    REQUIRE(code == status::ok);
    must(cudaGraphInstantiate(&graph_, graph, 0));
    must(cudaGraphDestroy(graph));
  }

  const number_pool& pool_;
  world_options options_;
  std::int64_t entries_ = 0, keys_rows_ = 0;
  device_array<std::uint16_t> hidden_, q_, k_;
  device_array<float> v_, out_;
  device_array<std::byte> keys_;
  std::vector<float> host_;
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace step_testing
