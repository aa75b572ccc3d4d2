// SPDX-License-Identifier: MIT
#include <cstring>
#include <flashmemory/cuda/query_encoder.hpp>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/cuda/top_k.hpp>
#include <random>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

constexpr std::int32_t retrievers = 3, hidden = 4096, rank = 2048, heads = 128;
constexpr std::int64_t page_keys = 64, page_bytes = page_keys * 132;

/// The published indexer's dimensions with weights of a small generator.
dual_encoder_config published_dimensions() {
  std::uint32_t state = 1;
  const auto noise = [&](std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& x : values) {
      state = state * 1664525u + 1013904223u;
      x = (static_cast<float>(state >> 8) * 0x1p-24f - 0.5f) * 0.05f;
    }
    return values;
  };
  dual_encoder_config c;
  c.hidden = hidden;
  c.rank = rank;
  c.heads = heads;
  c.rope.dim = 64;
  c.rope.max_positions = 1 << 20;
  const char* const names[] = {"l10", "l12", "l20"};
  for (std::int32_t r = 0; r < retrievers; ++r)
    c.retrievers.push_back({names[r],
                            r,
                            r,
                            noise(std::int64_t{rank} * hidden),
                            noise(rank),
                            noise(std::int64_t{heads} * 128 * rank),
                            noise(std::int64_t{heads} * hidden),
                            {},
                            0.0f});
  return c;
}

/// Planar pages of random keys, 1024 different ones.
void fill_with_keys(const device_block<std::byte>& pages) {
  std::mt19937_64 random(7);
  std::vector<std::byte> some(1024 * page_bytes);
  for (std::int64_t at = 0; at < std::int64_t(some.size()); at += page_bytes) {
    for (std::int64_t i = 0; i < page_keys * 128; ++i)
      some[std::size_t(at + i)] = std::byte((random() & 0x80) | random() % 0x48);
    for (std::int64_t i = 0; i < page_keys; ++i) {
      const float scale = 0.01f + 1e-5f * float(random() % 1000);
      std::memcpy(&some[std::size_t(at + page_keys * 128 + i * 4)], &scale, 4);
    }
  }
  for (std::size_t at = 0; at < pages.bytes(); at += some.size())
    must(cudaMemcpy(pages.data() + at, some.data(), std::min(some.size(), pages.bytes() - at),
                    cudaMemcpyHostToDevice));
}

/// One whole level-1 refresh of `rows` due sequences: query encoders of three layers (bf16 weights), scores of all
/// keys with the ensemble's maximum per chunk, the best tenth of the chunks. Weights and keys are read from memory:
/// together they are many times the L2 cache.
void level1_refresh(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t rows = state.range(0), keys = state.range(1) * 1024 / 4, chunks = keys / page_keys;
  static const cuda::query_encoder encoder(published_dimensions(), {}, [] {
    cuda::query_encoder_options o;
    o.max_rows = 8;
    return o;
  }());
  const device_block<std::byte> states(std::size_t(rows) * hidden * 2);
  fill_random(states.data(), states.bytes(), 3);
  const device_block<std::int64_t> positions(std::vector<std::int64_t>(std::size_t(rows), 4 * keys - 1));
  const device_block<std::byte> queries(std::size_t(retrievers * rows) * heads * 128);
  const device_block<float> weights(std::size_t(retrievers * rows) * heads);
  const device_block<std::byte> encode_scratch(encoder.workspace_bytes());
  const device_block<std::byte> pages(std::size_t(retrievers * rows * chunks * page_bytes));
  fill_with_keys(pages);
  const device_block<float> scores(std::size_t(rows * chunks));
  const device_block<std::int32_t> ids(std::size_t(rows * chunks));
  std::vector<cuda::score_job> host_jobs;
  std::vector<cuda::select_row> host_rows;
  for (std::int32_t r = 0; r < retrievers; ++r)
    for (std::int64_t row = 0; row < rows; ++row) {
      cuda::score_job job;
      job.queries = queries.data() + (r * rows + row) * heads * 128;
      job.weights = weights.data() + (r * rows + row) * heads;
      job.keys = pages.data() + (r * rows + row) * chunks * page_bytes;
      job.count = keys;
      job.chunk_max = scores.data() + row * chunks;
      host_jobs.push_back(job);
    }
  for (std::int64_t row = 0; row < rows; ++row) {
    cuda::select_row s;
    s.scores = scores.data() + row * chunks;
    s.count = chunks;
    s.k = static_cast<std::int32_t>(chunks / 10);
    s.ids = ids.data() + row * chunks;
    host_rows.push_back(s);
  }
  const device_block<cuda::score_job> jobs(host_jobs);
  const device_block<cuda::select_row> select_rows(host_rows);
  const device_block<std::uint64_t> counters(std::vector<std::uint64_t>(cuda::score_counters, 0));
  const device_block<std::byte> select_scratch(cuda::top_k_workspace_bytes(std::int32_t(rows), chunks));
  cuda::score_options options;
  options.heads = heads;
  options.chunk_max = true;
  options.counters = counters.data();
  const std::vector<const_tensor<2>> views(retrievers,
                                           const_tensor<2>(states.data(), dtype::bf16, rows, hidden));
  const auto encode = [&](int, stream_ref stream) {
    must(encoder.encode(views.data(), positions.data(), rows, {queries.data(), weights.data(), nullptr},
                        {encode_scratch.data(), encode_scratch.bytes()}, stream));
  };
  const auto score = [&](int, stream_ref stream) {
    must(cuda::score(options, jobs.data(), std::int32_t(retrievers * rows), {}, stream));
  };
  const auto select = [&](int, stream_ref stream) {
    must(cuda::select_top_k(select_rows.data(), std::int32_t(rows), chunks,
                            {select_scratch.data(), select_scratch.bytes()}, stream));
  };
  const double all = seconds_per_call(4, [&](int i, stream_ref stream) {
    encode(i, stream);
    score(i, stream);
    select(i, stream);
  });
  state.counters["encode_us"] = 1e6 * seconds_per_call(4, encode);
  state.counters["score_us"] = 1e6 * seconds_per_call(4, score);
  state.counters["select_us"] = 1e6 * seconds_per_call(4, select);
  report(state, all, double(encoder.weight_bytes()) + double(pages.bytes()));
}
BENCHMARK(level1_refresh)
    ->Name("cuda/level1_refresh")
    ->ArgNames({"rows", "Ktokens"})
    ->Args({1, 128})
    ->Args({1, 1024})
    ->Args({8, 1024})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace flashmemory_bench
