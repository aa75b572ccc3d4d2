// SPDX-License-Identifier: MIT
// An engine's own rows of scores, page pools and bias of index keys' logits.
#include <flashmemory/cuda/score/hopper.cuh>
#include <flashmemory/cuda/score/portable.cuh>
#include <flashmemory/cuda/store/gather.cuh>
#include <flashmemory/cuda/top_k/top_k.cuh>
#include <numeric>

#include "on_device.hpp"
#include "problem.hpp"
#include "selection.hpp"

namespace engine {

namespace cu = flashmemory::cuda;

namespace {

int multiprocessors() {
  int device = 0, sms = 0;
  ok(cudaGetDevice(&device));
  ok(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
  return sms;
}

/// Newer keys first: a policy of the engine's own.
struct recency_bias {
  float per_key = 0;
  __device__ float operator()(float logit, const cu::score_job&, std::int32_t key) const {
    return logit + per_key * float(key);
  }
};

}  // namespace

void pages_of_the_best_scores(std::uint32_t seed) {
  problem p(seed);
  const int rows = p.uniform(1, 9), stride = p.uniform(1, 40000), k = p.uniform(1, 300);
  std::vector<float> scores(std::size_t(rows) * stride);
  std::vector<std::int32_t> counts, table(scores.size());
  for (float& s : scores) s = p.normal();
  for (std::int32_t& t : table) t = p.uniform(0, 1 << 30);
  for (int r = 0; r < rows; ++r) counts.push_back(p.uniform(0, stride));
  const on_device<float> device_scores(scores);
  const on_device<std::int32_t> device_counts(counts), device_table(table),
      out(std::vector<std::int32_t>(std::size_t(rows) * k, -7));
  cu::top_k::paged_rows in;
  in.scores = device_scores.get();
  in.counts = device_counts.get();
  in.table = device_table.get();
  in.out = out.get();
  in.stride = in.table_stride = stride;
  in.k = k;
  const on_device<std::byte> scratch(std::vector<std::byte>(cu::top_k::workspace_bytes(rows, stride)));
  ok(cu::top_k::launch_top_k(in, rows, stride, scratch.get(), nullptr));
  ok(cudaDeviceSynchronize());
  const std::vector<std::int32_t> got = out.back();
  for (int r = 0; r < rows; ++r) {
    const float* const mine = scores.data() + std::size_t(r) * stride;
    std::vector<std::int32_t> ids(counts[r]);
    std::iota(ids.begin(), ids.end(), 0);
    std::sort(ids.begin(), ids.end(),
              [&](int a, int b) { return mine[a] != mine[b] ? mine[a] > mine[b] : a > b; });
    ids.resize(std::min<std::size_t>(ids.size(), k));
    std::sort(ids.begin(), ids.end());
    for (int i = 0; i < k; ++i) {
      const std::int32_t wanted = i < int(ids.size()) ? table[std::size_t(r) * stride + ids[i]] : -1;
      if (got[std::size_t(r) * k + i] != wanted)
        throw std::runtime_error("top-k: another page than the best");
    }
  }
}

void copies_between_page_pools(std::uint32_t seed) {
  problem p(seed);
  const int pages = p.uniform(2, 300), count = p.uniform(1, pages), bytes = 16 * p.uniform(1, 3000);
  std::vector<std::byte> pool(std::size_t(pages) * bytes);
  for (std::byte& b : pool) b = std::byte(p.uniform(0, 255));
  std::vector<std::int32_t> from(pages), to(pages);
  std::iota(from.begin(), from.end(), 0);
  std::iota(to.begin(), to.end(), 0);
  std::shuffle(from.begin(), from.end(), p.random);
  std::shuffle(to.begin(), to.end(), p.random);
  const on_device<std::byte> source(pool);
  const on_device<std::int32_t> device_from(from), device_to(to);
  for (const bool bulk : {false, true}) {
    if (bulk && !cu::gather::make_bulk_ready<cu::gather::page_copies>()) continue;
    const on_device<std::byte> target(std::vector<std::byte>(pool.size(), std::byte{0}));
    const cu::gather::page_copies copies = {target.get(),      source.get(), device_to.get(),
                                            device_from.get(), bytes,        bytes};
    const auto launch = bulk ? cu::gather::launch_bulk<cu::gather::page_copies>
                             : cu::gather::launch_portable<cu::gather::page_copies>;
    ok(launch(copies, count, std::size_t(bytes), 4, nullptr));
    ok(cudaDeviceSynchronize());
    std::vector<std::byte> wanted(pool.size(), std::byte{0});
    for (int i = 0; i < count; ++i)
      std::copy_n(pool.begin() + std::ptrdiff_t(from[i]) * bytes, bytes,
                  wanted.begin() + std::ptrdiff_t(to[i]) * bytes);
    if (target.back() != wanted) throw std::runtime_error("gather: another page than the one that was named");
  }
}

void scores_with_a_bias(std::uint32_t seed) {
  problem p(seed);
  const int heads = p.uniform(1, 128), keys = p.uniform(1, 700), pages = (keys + 63) / 64;
  const auto code = [&] { return std::byte(p.uniform(0, 1) << 7 | p.uniform(0, 0x50)); };
  std::vector<std::byte> queries(std::size_t(heads) * 128), pool(std::size_t(pages) * 64 * 132);
  std::vector<float> weights(heads);
  for (std::byte& b : queries) b = code();
  for (float& w : weights) w = p.normal() / float(heads);
  std::vector<float> scales(std::size_t(pages) * 64);
  for (std::size_t i = 0; i < scales.size(); ++i) {
    scales[i] = 0.01f * p.normal();
    std::byte* const page = pool.data() + i / 64 * 64 * 132;
    for (int d = 0; d < 128; ++d) page[i % 64 * 128 + d] = code();
    std::memcpy(page + 64 * 128 + i % 64 * 4, &scales[i], 4);
  }
  const on_device<std::byte> device_queries(queries), device_pool(pool);
  const on_device<float> device_weights(weights), logits(std::vector<float>(keys, 99));
  cu::score_job job;
  job.queries = device_queries.get();
  job.weights = device_weights.get();
  job.keys = device_pool.get();
  job.count = keys;
  job.logits = logits.get();
  const on_device<cu::score_job> jobs(std::vector<cu::score_job>{job});
  using call = cu::scoring::call<cu::scoring::e4m3_keys, recency_bias>;
  call in;
  in.jobs = jobs.get();
  in.num_jobs = 1;
  in.heads = heads;
  in.logits.per_key = 0.25f;
  int major = 0;
  ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  for (const bool fast : {false, true}) {
    if (fast && (major != 9 || !cu::scoring::has_hopper<call>())) continue;
    const int blocks = multiprocessors();
    ok(fast ? cu::scoring::launch_hopper(in, blocks, nullptr)
            : cu::scoring::launch_portable(in, blocks, nullptr));
    ok(cudaDeviceSynchronize());
    const std::vector<float> got = logits.back();
    for (int n = 0; n < keys; ++n) {
      const std::byte* const key = pool.data() + std::size_t(n / 64) * 64 * 132 + n % 64 * 128;
      double logit = 0, size = 0;
      for (int h = 0; h < heads; ++h) {
        double dot = 0;
        for (int d = 0; d < 128; ++d) {
          const double product = of_e4m3(std::uint8_t(queries[h * 128 + d])) * of_e4m3(std::uint8_t(key[d]));
          dot += product;
          size += std::abs(weights[h] * product * scales[n]);
        }
        logit += weights[h] * std::max(0.0, dot * scales[n]);
      }
      logit += 0.25 * n;
      // The tensor cores drop what is small beside the largest product at hand: see score_job.
      if (!(std::abs(got[n] - logit) <= 1e-5 * (std::abs(logit) + 1) + size / 512))
        throw std::runtime_error("score: logit " + std::to_string(n) + " is " + std::to_string(got[n]) +
                                 " instead of " + std::to_string(logit));
    }
  }
}

}  // namespace engine
