// SPDX-License-Identifier: MIT
#include <benchmark/benchmark.h>

#include <filesystem>
#include <flashmemory/flashmemory.hpp>
#include <random>
#include <string>
#include <vector>

#include "bench/ceilings.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

constexpr std::int32_t hidden_size = 256;

std::vector<float> noise(std::int64_t count) {
  static std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& x : values) x = normal(random);
  return values;
}

void check(status s) {
  if (s != status::ok) throw error(s, to_string(s));
}

/// Three retrievers of eight heads over two query and two key layers, as the tinylm example's.
dual_encoder_config three_retrievers() {
  dual_encoder_config c;
  c.hidden = hidden_size;
  c.rank = 256;
  c.heads = 8;
  c.key_window = 16;
  c.bf16_rounding = false;
  const std::int32_t layers[3][2] = {{6, 2}, {6, 0}, {7, 2}};
  char name[] = "r0";
  for (const auto& [query_layer, key_layer] : layers) {
    c.retrievers.push_back({name, query_layer, key_layer, noise(c.rank * hidden_size),
                            std::vector<float>(std::size_t(c.rank), 1.0f), noise(c.heads * 128 * c.rank),
                            noise(c.heads * hidden_size), noise(128 * hidden_size), 0.0f});
    ++name[1];
  }
  return c;
}

/// Sequences that have processed a prompt and had their warm start.
class served_store {
 public:
  served_store(std::int32_t sequences, std::int64_t prompt, std::int64_t steps,
               const std::string& backing_path = "")
      : index_(three_retrievers()),
        options_(options(sequences, prompt + steps, backing_path)),
        store_(options_),
        select_(store_, index_, policy_, selector(sequences)) {
    const auto& g = options_.geometry;
    const auto k = noise(prompt * g.kv_heads * g.key_dim), hidden = noise(prompt * hidden_size);
    for (std::int32_t s = 0; s < sequences; ++s) {
      const auto handle = store_.open(sequence_options_for(policy_, g, prompt + steps));
      select_.attach(handle);
      items.push_back({handle, 0, static_cast<std::int32_t>(prompt)});
      forward(batch(&items.back(), 1), k, hidden);
      items.back().position = prompt;
      items.back().num_tokens = 1;
    }
    k_ = noise(sequences * g.kv_heads * g.key_dim);
    hidden_ = noise(sequences * hidden_size);
  }

  /// All layers of one token of every sequence, without select_chunks().
  void append() { append(all(), k_, hidden_); }

  batch all() const { return batch(items.data(), static_cast<std::int64_t>(items.size())); }
  class selector& select() {
    return select_;
  }
  tiered_chunk_store& store() { return store_; }
  const kv_geometry& geometry() const { return options_.geometry; }

  std::vector<batch_item> items;

 private:
  static store_options options(std::int32_t sequences, std::int64_t tokens, const std::string& backing_path) {
    store_options o;
    o.geometry.layers = 8;
    o.geometry.kv_heads = 2;
    o.geometry.key_dim = o.geometry.value_dim = 64;
    o.geometry.type = dtype::bf16;
    o.geometry.index_keys.lanes = 3;
    const auto bytes = std::size_t(o.geometry.chunks_for(tokens)) * chunk_layout(o.geometry).chunk_bytes();
    o.fast_bytes = o.backing_bytes = bytes * std::size_t(sequences + 1);
    o.max_sequences = sequences;
    o.backing_path = backing_path;
    return o;
  }
  static selector_options selector(std::int32_t sequences) {
    selector_options o;
    o.max_sequences = sequences;
    return o;
  }
  void append(batch batch_items, const std::vector<float>& k, const std::vector<float>& hidden) {
    const auto& g = options_.geometry;
    const auto rows = std::int64_t(hidden.size()) / hidden_size;
    const const_tensor<3> kv(k.data(), dtype::f32, rows, g.kv_heads, g.key_dim);
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      check(select_.observe(batch_items, layer, {hidden.data(), dtype::f32, rows, hidden_size},
                            stream_ref::host()));
      check(store_.append(batch_items, layer, kv, kv, stream_ref::host()));
    }
  }
  void forward(batch batch_items, const std::vector<float>& k, const std::vector<float>& hidden) {
    append(batch_items, k, hidden);
    check(select_chunks(select_, batch_items, stream_ref::host()));
  }

  dual_encoder_indexer index_;
  selection_policy policy_;
  store_options options_;
  tiered_chunk_store store_;
  class selector select_;
  std::vector<float> k_, hidden_;
};

/// The step call when no sequence is due: the same step again and again, which does not come nearer to a
/// refresh.
void select_chunks_idle(benchmark::State& state) {
  served_store served(static_cast<std::int32_t>(state.range(0)), 1024, 1);
  served.append();
  for (auto _ : state) check(select_chunks(served.select(), served.all(), stream_ref::host()));
  state.counters["ns/sequence"] =
      benchmark::Counter(double(state.iterations() * state.range(0)) * 1e-9,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

/// One whole refresh: query encoding, scoring of all keys, policy, recall of what is new.
void refresh(benchmark::State& state) {
  served_store served(1, state.range(0), 1);
  served.append();
  const double keys = double(served.geometry().index_keys.lanes) * double(state.range(0)) /
                      served.geometry().index_keys.tokens_per_key;
  for (auto _ : state) {
    check(served.select().request_refresh(served.items[0].sequence));
    check(select_chunks(served.select(), served.all(), stream_ref::host()));
  }
  selection_report report;
  check(served.select().report(served.items[0].sequence, &report));
  state.counters["flop/s"] =
      benchmark::Counter(double(state.iterations()) * keys * 8 * 128 * 2, benchmark::Counter::kIsRate);
  state.counters["of_fma_peak"] =
      benchmark::Counter(double(state.iterations()) * keys * 8 * 128 * 2 / measured_ceilings().fma_flops,
                         benchmark::Counter::kIsRate);
  state.counters["chunks"] = double(report.plan.chunks);
}

/// Exchanging the selected chunks for others and back; the backing store in memory (0) or on a file (1).
void recall(benchmark::State& state) {
  const bool on_file = state.range(0) != 0;
  const auto path = std::filesystem::temp_directory_path() / "flashmemory_bench_backing";
  served_store served(1, 16384, 1, on_file ? path.string() : "");
  const auto sequence = served.items[0].sequence;
  std::vector<chunk_id> sets[2];
  for (chunk_id c = 10; c < 40; ++c) sets[0].push_back(c), sets[1].push_back(c + 100);
  std::int64_t turn = 0, bytes = 0;
  for (auto _ : state) {
    const auto& set = sets[turn++ % 2];
    recall_report report;
    check(served.store().recall(sequence, view<const chunk_id, 1>(set.data(), set.size()), &report,
                                stream_ref::host()));
    bytes += report.bytes;
  }
  state.SetBytesProcessed(bytes);
  state.counters["of_read"] =
      benchmark::Counter(double(bytes) / measured_ceilings().read_bytes_core, benchmark::Counter::kIsRate);
}

/// Storing K and V and making index keys of one token of every sequence, all layers; write-through included.
void append_step(benchmark::State& state) {
  const auto sequences = static_cast<std::int32_t>(state.range(0));
  const std::int64_t room = 4096;
  served_store served(sequences, 1024, room);
  for (auto _ : state) {
    served.append();
    check(select_chunks(served.select(), served.all(), stream_ref::host()));
    for (auto& item : served.items) ++item.position;
  }
  state.counters["us/token"] = benchmark::Counter(double(state.iterations() * sequences) * 1e-6,
                                                  benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

BENCHMARK(select_chunks_idle)->ArgName("sequences")->Arg(1)->Arg(64)->UseRealTime();
BENCHMARK(refresh)->ArgName("tokens")->Arg(4096)->Arg(16384)->Arg(32768)->UseRealTime()->Unit(
    benchmark::kMicrosecond);
BENCHMARK(recall)->ArgName("file")->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(append_step)
    ->ArgName("sequences")
    ->Arg(1)
    ->Arg(16)
    ->Iterations(4000)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace flashmemory_bench
