// SPDX-License-Identifier: MIT
#include <random>

#include "src/store/rows.hpp"
#include "tests/cuda/step_world.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace step_testing;

TEST_CASE("a step writes DeepSeek-V4 entries as the host's store quantises them", "[gpu][step]") {
  REQUIRE_GPU();
  const bool captured = GENERATE(false, true);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(captured, seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  fm::store_options o;
  fm::kv_geometry& g = o.geometry;
  g.layers = 3;
  g.kv_heads = 1;
  g.key_dim = fm::deepseek_v4::entry_dim;
  g.value_dim = fm::deepseek_v4::lightning_dim;
  g.format = fm::kv_format::deepseek_v4;
  g.entries_per_chunk = 16;
  g.tokens_per_entry = 4;
  o.fast_bytes = o.backing_bytes = std::size_t{64} << 20;
  o.max_sequences = 4;
  fm::tiered_chunk_store host(o);
  const auto device = cu::make_store(o);
  fm::sequence_options s;
  s.max_tokens = 400;
  cu::decode_step_options d;
  d.rows = 4;  // one of them stays empty
  d.max_chunks = 10;
  cu::decode_step step(*device, nullptr, d);
  CHECK(step.entries_per_row() == 1);
  const device_stream stream;
  const std::int64_t rows = d.rows;
  std::vector<device_array<float>> k, v;
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    k.emplace_back(std::size_t(rows * g.key_dim));
    v.emplace_back(std::size_t(rows * g.value_dim));
  }
  const auto launches = [&] {
    for (std::int32_t layer = 0; layer < g.layers; ++layer)
      REQUIRE(step.append(
                  layer,
                  fm::view<const float, 3>(k[std::size_t(layer)].data(), rows, 1, std::int64_t{g.key_dim}),
                  fm::view<const float, 3>(v[std::size_t(layer)].data(), rows, 1, std::int64_t{g.value_dim}),
                  stream.ref()) == status::ok);
  };
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  if (captured) {
    must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    launches();
    must(cudaStreamEndCapture(stream.get(), &graph));
    must(cudaGraphInstantiate(&replay, graph, 0));
  }
  std::vector<fm::batch_item> on_host, on_device(4);
  for (std::size_t i = 0; i < 3; ++i) {
    on_host.push_back({host.open(s), 0, 1});
    on_device[i < 2 ? i : 3] = {device->open(s), 0, 1};
  }
  const auto row_of = [](std::size_t i) { return i < 2 ? i : 3; };

  for (int token = 0; token < 230; ++token) {
    std::vector<fm::batch_item> now;
    // One of them joins later, so that their entries are completed in different steps.
    for (std::size_t i = 0; i < 3; ++i)
      if (i != 1 || token >= 13) now.push_back(on_host[i]);
    auto items = on_device;
    if (token < 13) items[1] = {};
    must(cudaStreamSynchronize(stream.get()));
    std::vector<std::vector<float>> host_k, host_v;
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      std::vector<float> all_k(std::size_t(rows * g.key_dim)), all_v(std::size_t(rows * g.value_dim));
      for (float& x : all_k) x = normal(random) * 4;
      for (float& x : all_v) x = normal(random);
      k[std::size_t(layer)].put(all_k);
      v[std::size_t(layer)].put(all_v);
      std::vector<float> packed_k, packed_v;
      for (std::size_t i = 0; i < 3; ++i) {
        if ((i == 1 && token < 13) || (on_host[i].position + 1) % 4 != 0) continue;
        const auto r = std::ptrdiff_t(row_of(i));
        packed_k.insert(packed_k.end(), all_k.begin() + r * g.key_dim, all_k.begin() + (r + 1) * g.key_dim);
        packed_v.insert(packed_v.end(), all_v.begin() + r * g.value_dim,
                        all_v.begin() + (r + 1) * g.value_dim);
      }
      host_k.push_back(std::move(packed_k));
      host_v.push_back(std::move(packed_v));
    }
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      const auto& pk = host_k[std::size_t(layer)];
      const auto& pv = host_v[std::size_t(layer)];
      const std::int64_t n = std::int64_t(pk.size()) / g.key_dim;
      REQUIRE(host.append(fm::batch(now.data(), now.size()), layer,
                          fm::view<const float, 3>(pk.data(), n, 1, std::int64_t{g.key_dim}),
                          fm::view<const float, 3>(pv.data(), n, 1, std::int64_t{g.value_dim}),
                          fm::stream_ref::host()) == status::ok);
    }
    REQUIRE(step.prepare(fm::batch(items.data(), items.size()), stream.ref()) == status::ok);
    if (captured)
      must(cudaGraphLaunch(replay, stream.get()));
    else
      launches();
    REQUIRE(step.finish(stream.ref()) == status::ok);
    for (std::size_t i = 0; i < 3; ++i)
      if (i != 1 || token >= 13) {
        ++on_host[i].position;
        ++on_device[row_of(i)].position;
      }
  }
  stream.wait();

  const fm::chunk_layout layout(g);
  std::vector<std::byte> a(layout.chunk_bytes()), b(a.size());
  for (std::size_t i = 0; i < 3; ++i) {
    const auto chunks = (g.entries_for(on_host[i].position) + 15) / 16;
    REQUIRE(chunks >= 3);
    for (std::int64_t c = 0; c < chunks; ++c) {
      CAPTURE(i, c);
      REQUIRE(host.read_chunk(on_host[i].sequence, fm::chunk_id(c),
                              fm::view<std::byte, 1>(a.data(), a.size())) == status::ok);
      REQUIRE(device->read_chunk(on_device[row_of(i)].sequence, fm::chunk_id(c),
                                 fm::view<std::byte, 1>(b.data(), b.size())) == status::ok);
      for (std::int32_t layer = 0; layer < g.layers; ++layer)
        fm::detail::for_each_padding(layout, [&](std::size_t offset, std::size_t bytes) {
          const std::size_t at = std::size_t(layer) * layout.layer_bytes() + offset;
          std::fill_n(a.begin() + std::ptrdiff_t(at), bytes, std::byte{0});
          std::fill_n(b.begin() + std::ptrdiff_t(at), bytes, std::byte{0});
        });
      REQUIRE(a == b);
    }
  }
  if (captured) {
    must(cudaGraphExecDestroy(replay));
    must(cudaGraphDestroy(graph));
  }
  CHECK(device->counters().faults == 0);
}
