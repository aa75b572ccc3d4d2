// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;

TEST_CASE("store_bytes_for() is what a store needs for so many sequences, to the byte", "[store]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto pick = [&](std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random);
  };
  for (int round = 0; round < 60; ++round) {
    fm::store_options o;
    auto& g = o.geometry;
    g.layers = pick(1, 3);
    g.kv_heads = pick(1, 2);
    g.key_dim = 8 * pick(1, 4);
    g.value_dim = 8 * pick(1, 4);
    g.entries_per_chunk = 4 * pick(1, 5);
    g.index_keys.lanes = pick(0, 2);
    g.index_keys.dim = 32 * pick(1, 3);
    g.index_keys.type = fm::index_key_type(pick(0, 4));
    o.max_sequences = pick(1, 9);
    o.transition_chunks = pick(0, 1) * pick(1, 12);
    fm::sequence_options s;
    s.max_tokens = pick(1, 900);
    s.sink_chunks = pick(0, 2);
    s.recent_chunks = pick(0, 3);
    if (pick(0, 2) != 0) s.max_resident_chunks = s.sink_chunks + s.recent_chunks + 2 + pick(0, 9);
    const std::int32_t sequences = pick(1, o.max_sequences);
    CAPTURE(round, o.max_sequences, sequences, s.max_tokens, s.max_resident_chunks, o.transition_chunks);
    const fm::store_bytes needed = fm::store_bytes_for(o, s, sequences);
    const auto all_open = [&](std::size_t fast, std::size_t backing) {
      fm::store_options budget = o;
      budget.fast_bytes = fast;
      budget.backing_bytes = backing;
      try {
        fm::tiered_chunk_store store(budget);
        for (std::int32_t i = 0; i < sequences; ++i) (void)store.open(s);
        return true;
      } catch (const fm::admission_error&) {
        return false;
      }
    };
    CHECK(all_open(needed.fast, needed.backing));
    CHECK_FALSE(all_open(needed.fast - 1, needed.backing));
    CHECK_FALSE(all_open(needed.fast, needed.backing - 1));
  }
  fm::store_options o;
  o.geometry.layers = o.geometry.kv_heads = 1;
  o.geometry.key_dim = o.geometry.value_dim = 16;
  fm::sequence_options s;
  s.max_tokens = 100;
  CHECK_THROWS_AS(fm::store_bytes_for(o, s, o.max_sequences + 1), fm::argument_error);
  CHECK_THROWS_AS(fm::store_bytes_for(o, s, -1), fm::argument_error);
  s.max_tokens = 0;
  CHECK_THROWS_AS(fm::store_bytes_for(o, s, 1), fm::argument_error);
}
