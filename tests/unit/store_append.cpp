// SPDX-License-Identifier: MIT
#include "catch.hpp"
#include "unit/store_support.hpp"

using namespace store_testing;
using fm::status;

TEST_CASE("what was appended is read back byte for byte, whether one token at a time or at once") {
  fm::kv_geometry g = small_geometry();
  g.type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  g.tokens_per_entry = GENERATE(1, 4);
  const int step = GENERATE(1, 3, 4, 7, 16, 61);
  CAPTURE(int(g.type), g.tokens_per_entry, step);
  g.tokens_per_key = 4;
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(61));
  while (s.tokens < 61) {
    REQUIRE(grow(store, s, std::min<std::int64_t>(step, 61 - s.tokens), 5 + std::uint64_t(s.tokens)) ==
            status::ok);
    REQUIRE(info(store, s).tokens == s.tokens);
  }
  CHECK(all_chunks_right(store, s));
  CHECK(info(store, s).complete_chunks == 61 / g.tokens_per_chunk());
  CHECK(store.counters().chunks_sealed == 61 / g.tokens_per_chunk());
}
