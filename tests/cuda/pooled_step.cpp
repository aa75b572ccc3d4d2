// SPDX-License-Identifier: MIT
// Decode steps whose selector scores with the model's own queries and pooled keys.
#include <flashmemory/cuda/decode_step.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/error.hpp>
#include <random>

#include "tests/cuda/gpu.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using fm::status;
using namespace flashmemory_test;

namespace {

constexpr std::int32_t layers = 2, kv_heads = 2, query_heads = 4, dim = 32, rows = 3;

/// The same K and queries through decode steps on the device and through a selector on the host.
struct pooled_steps {
  fm::pooled_keys_config config;
  fm::store_options options;
  fm::selection_policy policy;
  std::unique_ptr<fm::pooled_keys_indexer> index;
  std::unique_ptr<fm::tiered_chunk_store> on_host, on_device;
  std::unique_ptr<fm::selector> host_select, device_select;
  std::unique_ptr<cu::decode_step> step;
  device_stream stream;
  device_array<float> k[layers], v[layers], q[layers];  ///< of a step, at fixed addresses
  cudaGraphExec_t graph = nullptr;
  std::mt19937 random;
  std::int32_t tokens;
  std::vector<fm::sequence_handle> host, device;
  std::vector<std::int64_t> length;

  pooled_steps(fm::index_key_type type, fm::index_key_layout layout, std::int32_t step_tokens,
               std::uint32_t seed)
      : random(seed), tokens(step_tokens) {
    auto& g = options.geometry;
    g.layers = layers;
    g.kv_heads = kv_heads;
    g.key_dim = g.value_dim = dim;
    g.type = fm::dtype::f32;
    g.entries_per_chunk = 16;
    config = fm::pooled_keys_of(g, query_heads, {0, 1});
    config.type = type;
    config.query_tokens = 2;
    index = std::make_unique<fm::pooled_keys_indexer>(config);
    g.index_keys = index->taps().reads;
    g.index_keys.layout = layout;
    options.fast_bytes = options.backing_bytes = std::size_t{64} << 20;
    options.max_sequences = 4;
    policy.interval = 8;
    policy.budget_fraction = 0.3;
    fm::selector_options so;
    so.max_sequences = 4;
    on_host = std::make_unique<fm::tiered_chunk_store>(options);
    on_device = cu::make_store(options);
    host_select = std::make_unique<fm::selector>(*on_host, *index, policy, so);
    device_select = cu::make_selector(*on_device, config, policy, so);
    cu::decode_step_options o;
    o.rows = rows;
    o.tokens = tokens;
    o.max_chunks = 64;
    step = std::make_unique<cu::decode_step>(*on_device, device_select.get(), o);
    for (int l = 0; l < layers; ++l) {
      k[l] = device_array<float>(std::size_t(rows * tokens * kv_heads * dim));
      v[l] = device_array<float>(std::size_t(rows * tokens * kv_heads * dim));
      q[l] = device_array<float>(std::size_t(rows * tokens * query_heads * dim));
    }
  }
  ~pooled_steps() {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }

  std::vector<float> noise(std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(std::size_t(count), 0.0f);
    for (float& x : values) x = normal(random);
    return values;
  }
  static fm::view<const float, 3> heads(const float* data, std::int64_t n) {
    return fm::view<const float, 3>(data, n, kv_heads, dim);
  }
  static fm::view<const float, 2> flat(const float* data, std::int64_t n) {
    return fm::view<const float, 2>(data, n, query_heads * dim);
  }

  void pass_on_host(const std::vector<fm::batch_item>& items, const std::vector<float> (&nk)[layers],
                    const std::vector<float> (&nv)[layers], const std::vector<float> (&nq)[layers],
                    std::int64_t n) {
    const fm::batch all(items.data(), items.size());
    const auto here = fm::stream_ref::host();
    for (int l = 0; l < layers; ++l) {
      REQUIRE(host_select->observe_keys(all, l, heads(nk[l].data(), n), here) == status::ok);
      REQUIRE(host_select->observe_queries(all, l, flat(nq[l].data(), n), here) == status::ok);
      REQUIRE(on_host->append(all, l, heads(nk[l].data(), n), heads(nv[l].data(), n), here) == status::ok);
    }
    REQUIRE(fm::select_chunks(*host_select, all, here) == status::ok);
  }
  void draw(std::int64_t n, std::vector<float> (&nk)[layers], std::vector<float> (&nv)[layers],
            std::vector<float> (&nq)[layers]) {
    for (int l = 0; l < layers; ++l) {
      nk[l] = noise(n * kv_heads * dim);
      nv[l] = noise(n * kv_heads * dim);
      nq[l] = noise(n * query_heads * dim);
    }
  }

  void open(std::int64_t prompt) {
    const auto o = fm::sequence_options_for(policy, options.geometry, 900);
    host.push_back(on_host->open(o));
    device.push_back(on_device->open(o));
    host_select->attach(host.back());
    device_select->attach(device.back());
    std::vector<float> nk[layers], nv[layers], nq[layers];
    draw(prompt, nk, nv, nq);
    pass_on_host({{host.back(), 0, std::int32_t(prompt)}}, nk, nv, nq, prompt);
    const fm::batch_item item{device.back(), 0, std::int32_t(prompt)};
    const fm::batch one(&item, 1);
    for (int l = 0; l < layers; ++l) {
      const device_array<float> dk(nk[l]), dv(nv[l]), dq(nq[l]);
      REQUIRE(device_select->observe_keys(one, l, heads(dk.data(), prompt), stream.ref()) == status::ok);
      REQUIRE(device_select->observe_queries(one, l, flat(dq.data(), prompt), stream.ref()) == status::ok);
      REQUIRE(on_device->append(one, l, heads(dk.data(), prompt), heads(dv.data(), prompt), stream.ref()) ==
              status::ok);
      stream.wait();
    }
    REQUIRE(fm::select_chunks(*device_select, one, stream.ref()) == status::ok);
    length.push_back(prompt);
  }

  void launches() {
    const std::int64_t n = std::int64_t{rows} * tokens;
    for (int l = 0; l < layers; ++l) {
      REQUIRE(step->observe_keys(l, heads(k[l].data(), n), stream.ref()) == status::ok);
      REQUIRE(step->observe_queries(l, flat(q[l].data(), n), stream.ref()) == status::ok);
      REQUIRE(step->append(l, heads(k[l].data(), n), heads(v[l].data(), n), stream.ref()) == status::ok);
    }
  }

  void decode(bool captured) {
    std::vector<fm::batch_item> on_h, on_d;
    for (std::size_t i = 0; i < host.size(); ++i) {
      on_h.push_back({host[i], length[i], tokens});
      on_d.push_back({device[i], length[i], tokens});
    }
    const std::int64_t live = std::int64_t(host.size()) * tokens;
    std::vector<float> nk[layers], nv[layers], nq[layers];
    draw(live, nk, nv, nq);
    stream.wait();
    for (int l = 0; l < layers; ++l) {
      k[l].put(nk[l]);
      v[l].put(nv[l]);
      q[l].put(nq[l]);
    }
    const fm::batch items(on_d.data(), on_d.size());
    REQUIRE(step->prepare(items, stream.ref()) == status::ok);
    if (!captured) {
      launches();
    } else if (graph == nullptr) {
      cudaGraph_t recorded = nullptr;
      must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
      launches();
      must(cudaStreamEndCapture(stream.get(), &recorded));
      must(cudaGraphInstantiate(&graph, recorded, 0));
      must(cudaGraphDestroy(recorded));
    }
    if (captured) must(cudaGraphLaunch(graph, stream.get()));
    REQUIRE(step->finish(stream.ref()) == status::ok);
    REQUIRE(fm::select_chunks(*device_select, items, stream.ref()) == status::ok);
    pass_on_host(on_h, nk, nv, nq, live);
    for (auto& n : length) n += tokens;
  }

  void check_keys() {
    const auto& g = options.geometry;
    for (std::size_t i = 0; i < host.size(); ++i)
      for (std::int32_t lane = 0; lane < g.index_keys.lanes; ++lane) {
        fm::index_key_pages a, b;
        REQUIRE(on_host->index_keys(host[i], lane, &a) == status::ok);
        REQUIRE(on_device->index_keys(device[i], lane, &b) == status::ok);
        REQUIRE(a.keys == length[i] / 4);
        REQUIRE(b.keys == a.keys);
        const std::int64_t page = g.index_keys_per_chunk();
        // Whole pages; of the last one what is there, unless its scales lie apart.
        const std::int64_t whole = a.keys / page * page;
        const std::int64_t upto = g.index_keys.layout == fm::index_key_layout::planar ? whole : a.keys;
        std::vector<std::byte> wanted(a.data, a.data + upto * g.index_keys.bytes()), got(wanted.size());
        stream.wait();
        if (!got.empty()) must(cudaMemcpy(got.data(), b.data, got.size(), cudaMemcpyDeviceToHost));
        CAPTURE(i, lane);
        REQUIRE(got == wanted);
      }
  }
};

}  // namespace

TEST_CASE("decode steps store the pooled keys that a selector on the host stores, eagerly and as a graph",
          "[gpu][step][pooled_keys]") {
  REQUIRE_GPU();
  const auto type = GENERATE(fm::index_key_type::int8, fm::index_key_type::mxfp4, fm::index_key_type::e4m3,
                             fm::index_key_type::bf16, fm::index_key_type::f16);
  const auto layout = GENERATE(fm::index_key_layout::planar, fm::index_key_layout::interleaved);
  const std::int32_t tokens = GENERATE(1, 3, 8);
  const bool captured = GENERATE(false, true);
  const auto seed = fresh_seed();
  CAPTURE(seed, int(type), int(layout), tokens, captured);
  pooled_steps w(type, layout, tokens, seed);
  w.open(61);
  w.open(130);
  for (int i = 0; i < 20; ++i) w.decode(captured);
  w.check_keys();
  w.open(7);
  for (int i = 0; i < 20; ++i) w.decode(captured);
  w.check_keys();
  CHECK(w.device_select->counters().refreshes == w.host_select->counters().refreshes);
  CHECK(w.device_select->counters().refreshes_failed == 0);
  CHECK(w.device_select->counters().nan_keys == 0);
}

TEST_CASE("the scores after a decode step are the host's up to rounding", "[gpu][step][pooled_keys]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  pooled_steps w(fm::index_key_type::int8, fm::index_key_layout::planar, 1, seed);
  w.open(300);
  for (int i = 0; i < 30; ++i) {
    REQUIRE(w.host_select->request_refresh(w.host[0]) == status::ok);
    REQUIRE(w.device_select->request_refresh(w.device[0]) == status::ok);
    w.decode(i % 2 == 0);
    const auto a = w.host_select->last_scores(), b = w.device_select->last_scores();
    REQUIRE(a.shape[0] == b.shape[0]);
    for (std::int64_t c = 0; c < a.shape[0]; ++c) {
      CAPTURE(i, c);
      REQUIRE(double(b(c)) == Approx(double(a(c))).margin(1e-3));
    }
  }
}

TEST_CASE("a decode step refuses rows of another shape and takes none that nobody reads",
          "[gpu][step][pooled_keys]") {
  REQUIRE_GPU();
  pooled_steps w(fm::index_key_type::int8, fm::index_key_layout::planar, 1, 1);
  w.open(40);
  const fm::batch_item item{w.device[0], 40, 1};
  REQUIRE(w.step->prepare(fm::batch(&item, 1), w.stream.ref()) == status::ok);
  using k3 = fm::view<const float, 3>;
  const float* const data = w.k[0].data();
  CHECK(w.step->observe(0, fm::view<const float, 2>(data, 1, 5), w.stream.ref()) == status::ok);
  CHECK(w.step->observe_keys(0, k3(data, rows, dim, kv_heads), w.stream.ref()) == status::bad_shape);
  CHECK(w.step->observe_keys(0, k3(data, rows + 1, kv_heads, dim), w.stream.ref()) == status::bad_shape);
  CHECK(w.step->observe_keys(2, k3(data, rows, kv_heads, dim), w.stream.ref()) == status::out_of_range);
  CHECK(w.step->observe_queries(0, fm::view<const float, 2>(data, rows, dim), w.stream.ref()) ==
        status::bad_shape);
  w.step->abandon();
}
