// SPDX-License-Identifier: MIT
// Replaces operator new, so it stands alone: how much is held, not how often it is asked for.
#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <flashmemory/train/record/recorder.hpp>
#include <flashmemory/train/record/recordings.hpp>
#include <new>

#include "tests/catch.hpp"
#include "tests/support/random_document.hpp"
#include "tests/support/temporary_folder.hpp"

namespace {

std::atomic<std::size_t> held{0}, most{0};

void* taken(std::size_t bytes) {
  void* const p = std::malloc(bytes == 0 ? 1 : bytes);
  if (p == nullptr) throw std::bad_alloc();
  const std::size_t now = held += malloc_usable_size(p);
  std::size_t before = most;
  while (before < now && !most.compare_exchange_weak(before, now)) {
  }
  return p;
}

void returned(void* p) noexcept {
  if (p != nullptr) held -= malloc_usable_size(p);
  std::free(p);
}

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t n) { return taken(n); }
[[gnu::noinline]] void* operator new[](std::size_t n) { return taken(n); }
[[gnu::noinline]] void operator delete(void* p) noexcept { returned(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { returned(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { returned(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept { returned(p); }

namespace fm = flashmemory;
namespace train = flashmemory::train;

TEST_CASE("recording and reading hold what they say, however much is recorded", "[train][memory]") {
  const flashmemory_test::temporary_folder folder;
  train::recording_geometry g;
  g.layers = 2;
  g.heads = 2;
  g.queries = {{0, fm::tap_kind::hidden, 64}};
  g.keys = {{0, 64, 1, 8, 0}};
  train::recorder_options options;
  options.memory_budget = std::size_t{1} << 20;
  options.shard_bytes = std::size_t{1} << 19;
  // Manifest, names, the tail of a window, one call's own copies.
  constexpr std::size_t besides = std::size_t{128} << 10;
  constexpr std::int64_t tokens = 40000;  // 128 B of a key, 128 of a query, 200 of attention: 18 MB
  std::vector<float> row(64, 0.25f);
  const float* const rows[] = {row.data()};
  std::vector<train::attention_entry> paid;
  for (int i = 0; i < 16; ++i) paid.push_back({i % 2, i / 2 % 2, i / 4, 0.1f});

  std::size_t start = held;
  most = start;
  {
    train::recorder recorder(folder.path(), g, options);
    for (int document = 0; document < 2; ++document) {
      const auto id = recorder.begin("a long one", train::dataset_split::train);
      for (std::int64_t t = 0; t < tokens; ++t) {
        recorder.add_hidden(id, 0, t, fm::view<const float, 2>(row.data(), 1, 64));
        recorder.add_query(id, t, rows);
        if (t >= 4) recorder.add_attention(id, t, paid);
      }
      recorder.finish(id, tokens);
    }
    recorder.flush();
    CHECK(recorder.counters().peak_bytes <= options.memory_budget);
    CHECK(recorder.counters().bytes_written > 20 * options.memory_budget);
  }
  CHECK(most - start <= options.memory_budget + besides);
  CHECK(most - start >= options.memory_budget / 2);  // or the count is wrong

  start = held;
  most = start;
  const train::recordings data(folder.path());
  data.verify();
  CHECK(most - start <= besides + (std::size_t{256} << 10));  // a piece of a file at a time
  const auto doc = data.load(1);
  CHECK(doc.bytes() > 10 * options.memory_budget);
  CHECK(doc.bytes() <= data.documents()[1].bytes + 8 * (tokens + 1));
  CHECK(most - start <= 3 * doc.bytes());  // vectors grow by doubling
}
