// SPDX-License-Identifier: MIT

#include "tests/catch.hpp"
#include "tests/support/counted_allocations.hpp"
#include "tests/unit/indexer/dual_encoder_support.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

TEST_CASE("score(), encode_index_keys(), encode_query() and score_keys() allocate nothing",
          "[dual_encoder]") {
  std::mt19937 random(1);
  auto config = random_config(random, 300, 40, 5, 3, true);
  config.combine = ensemble::mean;
  config.rope.dim = 64;
  dual_encoder_indexer index(config);
  const auto a = normals(random, 300), b = normals(random, 300);
  std::vector<std::vector<std::byte>> streams;
  for (int r = 0; r < 3; ++r) streams.push_back(random_keys(random, 4000));
  const reference::key_store store(reference::key_geometry(3, 16, index_key_layout::planar), streams);
  const float* queries[] = {a.data(), b.data()};
  score_request request;
  request.reader = &store;
  request.position = 77;
  request.chunks = 250;
  request.queries = queries;
  const scratch_memory memory(index);
  request.scratch = memory.scratch;
  request.threads = serial_threads();
  std::vector<float> scores(250), heads(5 * 128), gates(5), logits(4000);
  const auto rows = normals(random, 400 * 300);
  std::vector<std::byte> keys(100 * 132);

  const std::int64_t before = allocations;
  CHECK(before > 0);
  const status results[] = {
      index.score(request, view<float, 1>(scores.data(), 250)),
      index.encode_index_keys(2, view<const float, 2>(rows.data(), 400, 300),
                              view<std::byte, 2>(keys.data(), 100, 132), memory.scratch, serial_threads()),
      index.encode_query(1, a.data(), 5, heads.data(), gates.data(), memory.scratch),
      index.score_keys(1, heads.data(), gates.data(), streams[0].data(), 4000, 16,
                       index_key_layout::interleaved, logits.data(), serial_threads())};
  const std::int64_t after = allocations;
  CHECK(after == before);
  for (const status s : results) CHECK(s == status::ok);
}
