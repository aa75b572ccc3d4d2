// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

TEST_CASE("2 GiB of K and V in a file are served from 256 MiB of fast memory, which is never exceeded") {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = 8;
  g.key_dim = 128;
  g.value_dim = 128;
  g.type = fm::dtype::bf16;
  g.entries_per_chunk = 512;
  g.index_keys.lanes = 1;
  const auto chunk = fm::chunk_layout(g).chunk_bytes();  // 4 MiB
  constexpr std::int64_t chunks = 512;
  REQUIRE(chunk * chunks == std::size_t{1} << 31);
  fm::store_options o;
  o.geometry = g;
  o.fast_bytes = std::size_t{256} << 20;
  o.backing_bytes = chunk * chunks;
  o.max_sequences = 1;
  o.transition_chunks = 12;
  temporary_path path;
  o.backing_path = path.string();
  counting_memory memory;
  o.memory = memory.resource();
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(chunks * 512, 30));

  // One row per entry is made up once and moved by one element per chunk, so each chunk has bytes of its own.
  std::vector<std::uint16_t> row_values(512 * 8 * 128 + std::size_t(chunks));
  for (std::size_t i = 0; i < row_values.size(); ++i) row_values[i] = std::uint16_t(mixed(i));
  const auto rows = [&](std::int64_t c) {
    return fm::const_tensor<3>(row_values.data() + c, fm::dtype::bf16, 512, 8, 128);
  };
  for (std::int64_t c = 0; c < chunks; ++c) {
    const fm::batch_item item{s.handle, c * 512, 512};
    for (std::int32_t layer = 0; layer < 2; ++layer)
      REQUIRE(store.append(fm::batch(&item, 1), layer, rows(c), rows(chunks - 1 - c), host) == status::ok);
    if (c % 8 == 7) REQUIRE(recall(store, s, {}) == status::ok);
  }
  s.tokens = chunks * 512;
  CHECK(store.usage().backing_bytes == std::size_t{1} << 31);
  const fm::chunk_layout layout(g);
  for (fm::chunk_id first = 0; first < chunks - 12; first += 12) {
    std::vector<fm::chunk_id> wanted;
    for (fm::chunk_id id = first; id < first + 12; ++id) wanted.push_back(id);
    fm::recall_report r;
    REQUIRE(recall(store, s, wanted, &r) == status::ok);
    REQUIRE(r.refused == 0);
    const fm::resident_set set = resident(store, s);
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < set.count; ++i) {
      const fm::resident_chunk& have = set.chunks[i];
      found += have.id >= first && have.id < first + 12;
      for (const std::int64_t head : {0, 7})
        for (const std::int64_t entry : {0, 255, 511}) {
          const std::size_t at = std::size_t((entry * 8 + head) * 128);
          REQUIRE(std::memcmp(have.data + layout.key_offset(1, head) + entry * 256,
                              &row_values[at + std::size_t(have.id)], 256) == 0);
          REQUIRE(std::memcmp(have.data + layout.value_offset(0, head) + entry * 256,
                              &row_values[at + std::size_t(chunks - 1 - have.id)], 256) == 0);
        }
    }
    REQUIRE(found == 12);
  }
  CHECK(memory.peak <= o.fast_bytes);
  CHECK(memory.peak == store.usage().fast_peak_bytes);
  CHECK(store.counters().bytes_recalled >= std::int64_t(chunk) * 480);
}
