// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstring>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <random>
#include <vector>

#include "tests/cuda/gpu.hpp"
#include "tests/reference/score.hpp"

namespace flashmemory_test {

using flashmemory::index_key_layout;
using flashmemory::cuda::score_job;
using flashmemory::cuda::score_options;

/// Random finite e4m3 bytes.
inline std::vector<std::uint8_t> random_e4m3(std::mt19937_64& random, std::size_t count) {
  std::vector<std::uint8_t> bytes(count);
  for (std::uint8_t& byte : bytes) {
    const std::uint64_t r = random();
    byte = static_cast<std::uint8_t>((r & 0x80) | (r >> 8 & 0x3f));  // below 2, as most are
    if ((r >> 20 & 31) == 0) byte = static_cast<std::uint8_t>((r & 0x80) | (r >> 8 & 0x7f) % 0x7f);
  }
  return bytes;
}

/// One job and what belongs to it on both sides.
struct score_case {
  std::vector<std::uint8_t> queries;  // [heads, 128]
  std::vector<float> weights;
  std::vector<std::uint8_t> keys;  // [count, 128]
  std::vector<float> scales;
  float offset = 0;
  float threshold = 0;
  bool scattered = false;  // pages in random places behind a table

  device_array<std::uint8_t> device_queries, device_keys;
  device_array<float> device_weights, logits, group_max, chunk_max;
  device_array<const std::byte*> pages;
  device_array<std::int64_t> device_count;
  device_array<std::int32_t> above, above_count;

  std::size_t count() const { return scales.size(); }

  score_case(std::mt19937_64& random, std::int32_t heads, std::size_t n, bool scatter) : scattered(scatter) {
    queries = random_e4m3(random, static_cast<std::size_t>(heads) * 128);
    keys = random_e4m3(random, n * 128);
    std::normal_distribution<float> normal;
    for (std::int32_t h = 0; h < heads; ++h) weights.push_back(normal(random) * 0.02f);
    for (std::size_t i = 0; i < n; ++i) scales.push_back(std::exp(normal(random)) * 0.01f);
    offset = normal(random);
    threshold = offset + 0.5f * normal(random);
  }

  /// Copies everything to the device and makes the job.
  score_job upload(std::mt19937_64& random, const score_options& options) {
    const auto page_keys = static_cast<std::size_t>(options.keys_per_page);
    const std::size_t num_pages = (count() + page_keys - 1) / page_keys, page_bytes = page_keys * 132;
    std::vector<std::size_t> place(num_pages);
    std::iota(place.begin(), place.end(), std::size_t{0});
    const std::size_t step = (page_bytes + 15) / 16 * 16;
    if (scattered) std::shuffle(place.begin(), place.end(), random);
    std::vector<std::uint8_t> bytes(num_pages * (scattered ? step : page_bytes), std::uint8_t{0x7f});
    for (std::size_t i = 0; i < count(); ++i) {
      std::uint8_t* const page = bytes.data() + place[i / page_keys] * (scattered ? step : page_bytes);
      const std::size_t at = i % page_keys;
      const bool planar = options.layout == index_key_layout::planar;
      std::memcpy(page + at * (planar ? 128 : 132), &keys[i * 128], 128);
      std::memcpy(planar ? page + page_keys * 128 + at * 4 : page + at * 132 + 128, &scales[i], 4);
    }
    device_keys = device_array<std::uint8_t>(bytes);
    device_queries = device_array<std::uint8_t>(queries);
    device_weights = device_array<float>(weights);
    logits = device_array<float>(count());
    group_max = device_array<float>((count() + 15) / 16);
    chunk_max = device_array<float>(num_pages);
    above = device_array<std::int32_t>(count());
    above_count = device_array<std::int32_t>(1);
    score_job job;
    job.queries = reinterpret_cast<const std::byte*>(device_queries.data());
    job.weights = device_weights.data();
    if (scattered) {
      const auto lead = static_cast<std::int64_t>(random() % 100 * 16);
      job.pages_offset = lead;
      std::vector<const std::byte*> table;
      for (const std::size_t p : place) {
        table.push_back(reinterpret_cast<const std::byte*>(device_keys.data()) + p * step - lead);
      }
      pages = device_array<const std::byte*>(table);
      job.pages = pages.data();
    } else {
      job.keys = reinterpret_cast<const std::byte*>(device_keys.data());
    }
    job.count = static_cast<std::int64_t>(count());
    if (random() % 2 == 0) {  // the length is in device memory, and the host's is another
      device_count = device_array<std::int64_t>(std::vector<std::int64_t>{job.count});
      job.device_count = device_count.data();
      job.count = static_cast<std::int64_t>(random() % 1000);
    }
    job.offset = offset;
    job.threshold = threshold;
    job.logits = logits.data();
    job.group_max = group_max.data();
    if (options.chunk_max) job.chunk_max = chunk_max.data();
    if (options.above) {
      job.above = above.data();
      job.above_count = above_count.data();
      job.above_capacity = static_cast<std::int64_t>(count());
    }
    return job;
  }

  flashmemory::reference::scored_key want(std::size_t i) const {
    return flashmemory::reference::score_key(queries, weights, &keys[i * 128], scales[i], offset);
  }
};

/// Jobs, and what a call of score() needs besides them.
struct score_problem {
  score_options options;
  std::vector<score_case> cases;
  device_array<score_job> jobs;
  device_array<std::uint64_t> counters;
  device_array<std::uint8_t> scratch;
  device_stream stream;

  void upload(std::mt19937_64& random) {
    std::vector<score_job> host;
    std::int64_t keys = 0;
    for (score_case& c : cases) {
      host.push_back(c.upload(random, options));
      keys += static_cast<std::int64_t>(c.count() + 63) / 64 * 64;
    }
    jobs = device_array<score_job>(host);
    counters = device_array<std::uint64_t>(std::vector<std::uint64_t>(flashmemory::cuda::score_counters, 0));
    options.counters = counters.data();
    scratch = device_array<std::uint8_t>(flashmemory::cuda::score_workspace_bytes(options, keys) + 8);
  }

  flashmemory::status enqueue() {
    return flashmemory::cuda::score(options, jobs.data(), static_cast<std::int32_t>(cases.size()),
                                    {scratch.data(), scratch.bytes()}, stream.ref());
  }

  void run() {
    REQUIRE(enqueue() == flashmemory::status::ok);
    stream.wait();
  }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Equal, where all NaNs are.
inline bool same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))) return false;
  }
  return true;
}

}  // namespace flashmemory_test
