// SPDX-License-Identifier: MIT
#include "tests/reference/score.hpp"

#include <cmath>
#include <cstring>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/cuda/top_k.hpp>
#include <random>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

constexpr std::int64_t page_keys = 64;
constexpr std::int64_t page_bytes = page_keys * 132;
constexpr std::int64_t distinct_pages = 1024;   // then they repeat
constexpr std::size_t set_bytes = 300'000'000;  // read in turn, so that nothing comes from the L2 cache

/// Sets of `batch` jobs of `keys` keys each, keys and all.
struct problem {
  std::int32_t heads;
  std::int64_t batch, keys, sets;
  std::vector<std::uint8_t> queries;  // [heads, 128], the same for all
  std::vector<float> weights;
  std::vector<std::uint8_t> pages;  // [distinct_pages, page_bytes]
  device_block<std::uint8_t> device_pages, device_queries;
  device_block<float> device_weights, logits, group_max;
  device_block<std::int32_t> ids, counts;
  device_block<cuda::score_job> jobs;
  device_block<cuda::select_row> rows;
  device_block<std::uint64_t> counters;
  device_block<std::byte> scratch;
  cuda::score_options options;

  problem(std::int32_t h, std::int64_t b, std::int64_t n) : heads(h), batch(b), keys(n) {
    std::mt19937_64 random(7);
    const auto e4m3 = [&] { return static_cast<std::uint8_t>((random() & 0x80) | random() % 0x48); };
    for (std::int32_t i = 0; i < heads * 128; ++i) queries.push_back(e4m3());
    std::normal_distribution<float> normal;
    for (std::int32_t i = 0; i < heads; ++i) weights.push_back(normal(random));
    for (std::int64_t p = 0; p < distinct_pages; ++p) {
      for (std::int64_t i = 0; i < page_keys * 128; ++i) pages.push_back(e4m3());
      for (std::int64_t i = 0; i < page_keys; ++i) {
        const float scale = 0.01f + 0.001f * normal(random);
        std::uint8_t bytes[4];
        std::memcpy(bytes, &scale, 4);
        pages.insert(pages.end(), bytes, bytes + 4);
      }
    }
    const std::int64_t per_job = keys / page_keys, per_set = per_job * batch;
    sets = std::max<std::int64_t>(1, static_cast<std::int64_t>(set_bytes) / (per_set * page_bytes));
    device_pages = device_block<std::uint8_t>(std::size_t(sets * per_set * page_bytes));
    for (std::int64_t at = 0; at < sets * per_set; at += distinct_pages) {
      must(cudaMemcpy(device_pages.data() + at * page_bytes, pages.data(),
                      std::size_t(std::min(distinct_pages, sets * per_set - at) * page_bytes),
                      cudaMemcpyHostToDevice));
    }
    device_queries = device_block<std::uint8_t>(queries);
    device_weights = device_block<float>(weights);
    logits = device_block<float>(std::size_t(batch * keys));
    group_max = device_block<float>(std::size_t(batch * keys / 16));
    ids = device_block<std::int32_t>(std::size_t(batch * keys));
    counts = device_block<std::int32_t>(std::size_t(batch));
    counters = device_block<std::uint64_t>(std::vector<std::uint64_t>(cuda::score_counters, 0));
    options.heads = heads;
    options.counters = counters.data();
  }

  void make_jobs(bool with_logits, bool with_maxima, bool above, float threshold, std::int32_t k) {
    options.above = above;
    scratch = device_block<std::byte>(cuda::score_workspace_bytes(options, batch * keys));
    std::vector<cuda::score_job> host_jobs;
    std::vector<cuda::select_row> host_rows;
    for (std::int64_t i = 0; i < sets * batch; ++i) {
      cuda::score_job job;
      job.queries = reinterpret_cast<const std::byte*>(device_queries.data());
      job.weights = device_weights.data();
      job.keys =
          reinterpret_cast<const std::byte*>(device_pages.data()) + i * (keys / page_keys) * page_bytes;
      job.count = keys;
      job.threshold = threshold;
      const std::int64_t at = i % batch * keys;
      if (with_logits) job.logits = logits.data() + at;
      if (with_maxima) job.group_max = group_max.data() + at / 16;
      if (above) {
        job.above = ids.data() + at;
        job.above_count = counts.data() + i % batch;
        job.above_capacity = keys;
      }
      host_jobs.push_back(job);
      cuda::select_row row;
      row.scores = logits.data() + at;
      if (with_maxima) row.group_max = group_max.data() + at / 16;
      row.count = keys;
      row.k = k;
      row.ids = ids.data() + at;
      host_rows.push_back(row);
    }
    jobs = device_block<cuda::score_job>(host_jobs);
    rows = device_block<cuda::select_row>(host_rows);
  }

  void score(int call, stream_ref stream) {
    must(cuda::score(options, jobs.data() + call % sets * batch, static_cast<std::int32_t>(batch),
                     {scratch.data(), scratch.bytes()}, stream));
  }

  int calls() const { return static_cast<int>(std::max<std::int64_t>(sets, 4)); }

  std::vector<float> first_row() const {
    std::vector<float> row(static_cast<std::size_t>(keys));
    must(cudaMemcpy(row.data(), logits.data(), row.size() * sizeof(float), cudaMemcpyDeviceToHost));
    return row;
  }

  std::vector<std::int32_t> first_ids(std::size_t count) const {
    std::vector<std::int32_t> row(count);
    must(cudaMemcpy(row.data(), ids.data(), count * sizeof(std::int32_t), cudaMemcpyDeviceToHost));
    return row;
  }

  /// Whether the logits of the first row of set 0 are right, as far as a few show.
  bool right() const {
    const std::vector<float> row = first_row();
    for (const std::int64_t key : {std::int64_t{0}, keys / 3, keys - 1}) {
      const std::uint8_t* page = pages.data() + key / page_keys % distinct_pages * page_bytes;
      float scale;
      std::memcpy(&scale, page + page_keys * 128 + key % page_keys * 4, sizeof scale);
      const auto want = reference::score_key(queries, weights, page + key % page_keys * 128, scale, 0);
      if (!(std::fabs(double(row[std::size_t(key)]) - want.logit) <= 0x1p-9 * want.magnitude)) return false;
    }
    return true;
  }

  /// Runs `launch` on set 0 to its end.
  template <class Launch>
  void once(const Launch& launch) {
    cudaStream_t stream;
    must(cudaStreamCreate(&stream));
    launch(0, stream_ref(stream));
    must(cudaStreamSynchronize(stream));
    must(cudaStreamDestroy(stream));
  }
};

/// Logits of every key.
void score(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  problem p(static_cast<std::int32_t>(state.range(0)), state.range(1), state.range(2) * 1024);
  p.make_jobs(true, false, false, 0, 0);
  const auto launch = [&](int i, stream_ref stream) { p.score(i, stream); };
  p.once(launch);
  if (!p.right()) return state.SkipWithError("score disagrees with the reference");
  report(state, seconds_per_call(p.calls(), launch), 132.0 * double(p.batch * p.keys));
}

/// The list of keys above a threshold that 512 keys of a row exceed, and no logits.
void score_above(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  problem p(static_cast<std::int32_t>(state.range(0)), state.range(1), state.range(2) * 1024);
  const auto launch = [&](int i, stream_ref stream) { p.score(i, stream); };
  p.make_jobs(true, false, false, 0, 0);
  p.once(launch);
  std::vector<float> row = p.first_row(), sorted = row;
  std::nth_element(sorted.begin(), sorted.begin() + 512, sorted.end(), std::greater<float>());
  p.make_jobs(false, false, true, sorted[512], 0);
  p.once(launch);
  const auto want = reference::above(row, sorted[512]);
  if (p.first_ids(want.size()) != want) return state.SkipWithError("above disagrees with the reference");
  report(state, seconds_per_call(p.calls(), launch), 132.0 * double(p.batch * p.keys));
}

/// The best k keys of each row.
void score_top_k(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  problem p(static_cast<std::int32_t>(state.range(0)), state.range(1), state.range(2) * 1024);
  const auto k = static_cast<std::int32_t>(state.range(3));
  p.make_jobs(true, true, false, 0, k);
  const auto launch = [&](int i, stream_ref stream) {
    p.score(i, stream);
    must(cuda::select_top_k(p.rows.data() + i % p.sets * p.batch, static_cast<std::int32_t>(p.batch), 0, {},
                            stream));
  };
  p.once(launch);
  if (p.first_ids(std::size_t(k)) != reference::top_k(p.first_row(), std::size_t(k))) {
    return state.SkipWithError("top_k disagrees with the reference");
  }
  report(state, seconds_per_call(p.calls(), launch), 132.0 * double(p.batch * p.keys));
}

/// Top-k of scores that are there already.
void top_k(benchmark::State& state) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  const std::int64_t batch = state.range(0), count = state.range(1) * 1024;
  const auto k = static_cast<std::int32_t>(state.range(2));
  const std::int64_t sets = std::max<std::int64_t>(1, 300'000'000 / (batch * count * 4));
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> scores(std::size_t(batch * count));
  for (float& s : scores) s = normal(random);
  device_block<float> device_scores(std::size_t(sets * batch * count));
  device_block<std::int32_t> ids(std::size_t(batch * k));
  std::vector<cuda::select_row> rows;
  for (std::int64_t set = 0; set < sets; ++set) {
    float* const at = device_scores.data() + set * batch * count;
    must(cudaMemcpy(at, scores.data(), scores.size() * sizeof(float), cudaMemcpyHostToDevice));
    for (std::int64_t i = 0; i < batch; ++i) {
      cuda::select_row row;
      row.scores = at + i * count;
      row.count = count;
      row.k = k;
      row.ids = ids.data() + i * k;
      rows.push_back(row);
    }
  }
  const device_block<cuda::select_row> device_rows(rows);
  const auto n = static_cast<std::int32_t>(batch);
  device_block<std::byte> scratch(cuda::top_k_workspace_bytes(n, count));
  const double seconds =
      seconds_per_call(static_cast<int>(std::max<std::int64_t>(sets, 4)), [&](int i, stream_ref s) {
        must(cuda::select_top_k(device_rows.data() + i % sets * batch, n, count,
                                {scratch.data(), scratch.bytes()}, s));
      });
  std::vector<std::int32_t> got(static_cast<std::size_t>(k));
  must(cudaMemcpy(got.data(), ids.data(), got.size() * sizeof(std::int32_t), cudaMemcpyDeviceToHost));
  if (got != reference::top_k({scores.begin(), scores.begin() + count}, std::size_t(k))) {
    return state.SkipWithError("top_k disagrees with the reference");
  }
  report(state, seconds, 4.0 * double(batch * count));
}

void score_args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"heads", "batch", "Kkeys"})->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
  for (const int heads : {64, 128})
    for (const int batch : {1, 8, 32})
      for (const int kkeys : {16, 64, 256}) b->Args({heads, batch, kkeys});
}
void score_top_k_args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"heads", "batch", "Kkeys", "k"})
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
  for (const int k : {512, 2048})
    for (const int batch : {1, 8, 32})
      for (const int kkeys : {16, 64, 256}) b->Args({64, batch, kkeys, k});
}
void top_k_args(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "Kkeys", "k"})->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
  for (const int k : {512, 2048})
    for (const int batch : {1, 8, 32})
      for (const int kkeys : {16, 64, 256}) b->Args({batch, kkeys, k});
}
BENCHMARK(score)->Name("cuda/score")->Apply(score_args);
BENCHMARK(score_above)->Name("cuda/score_above")->Apply(score_args);
BENCHMARK(score_top_k)->Name("cuda/score_top_k")->Apply(score_top_k_args);
BENCHMARK(top_k)->Name("cuda/top_k")->Apply(top_k_args);

}  // namespace
}  // namespace flashmemory_bench
