// SPDX-License-Identifier: MIT
#include "bench/ceilings.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/ceilings.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace flashmemory_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Streams `words` 64-bit words through registers.
std::uint64_t sum_words(const std::uint64_t* data, std::size_t words) {
  const hn::ScalableTag<std::uint64_t> d;
  const std::size_t step = hn::Lanes(d);
  auto a = hn::Zero(d), b = a, c = a, e = a;
  std::size_t i = 0;
  for (; i + 4 * step <= words; i += 4 * step) {
    hwy::Prefetch(data + i + 1024);
    if (4 * step > 8) hwy::Prefetch(data + i + 1032);
    if (4 * step > 16) {
      hwy::Prefetch(data + i + 1040);
      hwy::Prefetch(data + i + 1048);
    }
    a = hn::Add(a, hn::LoadU(d, data + i));
    b = hn::Add(b, hn::LoadU(d, data + i + step));
    c = hn::Add(c, hn::LoadU(d, data + i + 2 * step));
    e = hn::Add(e, hn::LoadU(d, data + i + 3 * step));
  }
  std::uint64_t sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
  for (; i < words; ++i) sum += data[i];
  return sum;
}

/// Runs 12 independent FMA chains `rounds` long; returns the flop done and keeps the result alive in `sink`.
double fma_chains(std::int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto x = hn::Set(d, sink[0]), y = hn::Set(d, sink[1]);
  // Different starts, lest the compiler find that the chains are one.
  const auto start = [&](int k) { return hn::Set(d, sink[0] + static_cast<float>(k)); };
  auto a0 = start(0), a1 = start(1), a2 = start(2), a3 = start(3), a4 = start(4), a5 = start(5);
  auto a6 = start(6), a7 = start(7), a8 = start(8), a9 = start(9), a10 = start(10), a11 = start(11);
  for (std::int64_t i = 0; i < rounds; ++i) {
    a0 = hn::MulAdd(a0, x, y);
    a1 = hn::MulAdd(a1, x, y);
    a2 = hn::MulAdd(a2, x, y);
    a3 = hn::MulAdd(a3, x, y);
    a4 = hn::MulAdd(a4, x, y);
    a5 = hn::MulAdd(a5, x, y);
    a6 = hn::MulAdd(a6, x, y);
    a7 = hn::MulAdd(a7, x, y);
    a8 = hn::MulAdd(a8, x, y);
    a9 = hn::MulAdd(a9, x, y);
    a10 = hn::MulAdd(a10, x, y);
    a11 = hn::MulAdd(a11, x, y);
  }
  const auto s0 = hn::Add(hn::Add(a0, a1), hn::Add(a2, a3));
  const auto s1 = hn::Add(hn::Add(a4, a5), hn::Add(a6, a7));
  const auto s2 = hn::Add(hn::Add(a8, a9), hn::Add(a10, a11));
  sink[2] = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, hn::Add(s1, s2))));
  return 12.0 * 2.0 * double(hn::Lanes(d)) * double(rounds);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashmemory_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <chrono>
#include <cstring>
#include <flashmemory/memory.hpp>
#include <flashmemory/parallel.hpp>
#include <new>
#include <vector>

namespace flashmemory_bench {
namespace {
HWY_EXPORT(sum_words);
HWY_EXPORT(fma_chains);

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct buffer {
  flashmemory::memory_resource memory = flashmemory::default_memory();
  std::size_t bytes = std::size_t{512} << 20;
  std::uint64_t* words = static_cast<std::uint64_t*>(memory.allocate(memory.context, bytes, 64));
  buffer() {
    if (words == nullptr) throw std::bad_alloc();
    std::memset(words, 1, bytes);
  }
  ~buffer() { memory.deallocate(memory.context, words, bytes, 64); }
};

struct job {
  const std::uint64_t* words = nullptr;
  std::size_t count = 0;
  std::int32_t parts = 1;
  std::int64_t rounds = 0;
  std::vector<double> results;
};

template <class F>
void run(const flashmemory::thread_hook& threads, job& j, F) {
  const auto task = [](void* context, std::int32_t i) { F{}(*static_cast<job*>(context), i); };
  if (threads.run == nullptr || j.parts == 1) {
    for (std::int32_t i = 0; i < j.parts; ++i) task(&j, i);
  } else {
    threads.run(threads.context, j.parts, task, &j);
  }
}

struct read_part {
  void operator()(job& j, std::int32_t i) const {
    const std::size_t part = j.count / std::size_t(j.parts);
    j.results[std::size_t(i)] =
        double(HWY_DYNAMIC_DISPATCH(sum_words)(j.words + std::size_t(i) * part, part));
  }
};

struct fma_part {
  void operator()(job& j, std::int32_t i) const {
    float sink[3] = {0.5f, 0.25f, 0};
    j.results[std::size_t(i)] = HWY_DYNAMIC_DISPATCH(fma_chains)(j.rounds, sink);
    if (sink[2] < 0) j.results[std::size_t(i)] = 0;
  }
};

template <class F>
double seconds_of(const flashmemory::thread_hook& threads, job& j, F f) {
  const auto start = std::chrono::steady_clock::now();
  run(threads, j, f);
  return seconds_since(start);
}

ceilings measure() {
  ceilings c;
  const flashmemory::thread_hook threads = flashmemory::default_threads();
  c.threads = threads.concurrency;

  buffer source;
  for (const bool all : {false, true}) {
    // Pieces of a few milliseconds, as long as a benchmarked call, so that a busy machine leaves some alone.
    job j;
    j.count = source.bytes / 8 / 4;
    j.parts = all ? 4 * c.threads : 1;
    j.results.resize(std::size_t(j.parts));
    double best = 1e30;
    for (int r = 0; r < 60; ++r) {
      j.words = source.words + std::size_t(r % 4) * j.count;
      best = std::min(best, seconds_of(threads, j, read_part{}));
    }
    (all ? c.read_bytes : c.read_bytes_core) = double(j.count) * 8 / best;

    j.parts = all ? c.threads : 1;
    j.rounds = 400'000;
    best = 1e30;
    for (int r = 0; r < 100; ++r) best = std::min(best, seconds_of(threads, j, fma_part{}));
    double flop = 0;
    for (std::int32_t i = 0; i < j.parts; ++i) flop += j.results[std::size_t(i)];
    (all ? c.fma_flops : c.fma_flops_core) = flop / best;
  }
  return c;
}

}  // namespace

const ceilings& measured_ceilings() {
  static const ceilings result = measure();
  return result;
}

}  // namespace flashmemory_bench
#endif  // HWY_ONCE
