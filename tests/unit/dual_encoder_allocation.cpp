// SPDX-License-Identifier: MIT
// Replaces operator new, so it is a program of its own.
#include <atomic>
#include <cstdlib>
#include <new>

#include "catch.hpp"
#include "dual_encoder_support.hpp"

namespace {
std::atomic<std::int64_t> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  const std::size_t a = alignment < sizeof(void*) ? sizeof(void*) : alignment;
  void* const p = std::aligned_alloc(a, (bytes + a) / a * a);
  if (!p) throw std::bad_alloc();
  return p;
}
}  // namespace

void* operator new(std::size_t n) { return counted(n, alignof(std::max_align_t)); }
void* operator new[](std::size_t n) { return counted(n, alignof(std::max_align_t)); }
void* operator new(std::size_t n, std::align_val_t a) { return counted(n, std::size_t(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return counted(n, std::size_t(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

using namespace flashmemory;
using namespace flashmemory_test;

TEST_CASE("score(), encode_keys(), encode_query() and score_keys() allocate nothing", "[dual_encoder]") {
  std::mt19937 random(1);
  auto config = random_config(random, 300, 40, 5, 3, true);
  config.combine = ensemble::mean;
  config.rope.dim = 64;
  dual_encoder_indexer index(config);
  const auto a = normals(random, 300), b = normals(random, 300);
  std::vector<std::vector<std::byte>> streams;
  for (int r = 0; r < 3; ++r) streams.push_back(random_keys(random, 4000));
  const reference::key_store store(reference::key_geometry(3, 16, key_layout::planar), streams);
  const float* queries[] = {a.data(), b.data()};
  score_request request;
  request.store = &store;
  request.position = 77;
  request.chunks = 250;
  request.queries = queries;
  const scratch_memory memory(index);
  std::vector<float> scores(250), heads(5 * 128), gates(5), logits(4000);
  const auto rows = normals(random, 400 * 300);
  std::vector<std::byte> keys(100 * 132);

  const std::int64_t before = allocations;
  CHECK(before > 0);
  const status results[] = {
      index.score(request, view<float, 1>(scores.data(), 250), memory.scratch, serial_threads(),
                  stream_ref::host()),
      index.encode_keys(2, view<const float, 2>(rows.data(), 400, 300),
                        view<std::byte, 2>(keys.data(), 100, 132), memory.scratch, serial_threads()),
      index.encode_query(1, a.data(), 5, heads.data(), gates.data(), memory.scratch),
      index.score_keys(1, heads.data(), gates.data(), streams[0].data(), 4000, 16, key_layout::interleaved,
                       logits.data(), serial_threads())};
  const std::int64_t after = allocations;
  CHECK(after == before);
  for (const status s : results) CHECK(s == status::ok);
}
