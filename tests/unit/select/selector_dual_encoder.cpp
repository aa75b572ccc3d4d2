// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/small_dual_encoder.hpp"

namespace fm = flashmemory;
using fm::status;

TEST_CASE("a dual encoder's keys and selections do not depend on how the prompt was cut",
          "[selector][keys]") {
  const auto g = toy::geometry();
  fm::tiered_chunk_store store(toy::store_options(g));
  fm::dual_encoder_indexer index(toy::small_dual_encoder(3));
  fm::selection_policy p;
  p.interval = 8;
  fm::selector_options o;
  o.stagger = false;
  fm::selector select(store, index, p, o);
  toy::engine engine(store, select);
  const std::int64_t prompt = GENERATE(150, 333);
  const std::int64_t piece = GENERATE(1, 3, 64, 97);
  CAPTURE(prompt, piece);
  auto whole = engine.open(fm::sequence_options_for(p, g, 800), 8);
  auto cut = engine.open(fm::sequence_options_for(p, g, 800), 8);
  REQUIRE(engine.step(whole, prompt) == status::ok);
  while (cut.tokens < prompt) REQUIRE(engine.step(cut, std::min(piece, prompt - cut.tokens)) == status::ok);
  for (std::int32_t stream = 0; stream < 3; ++stream) {
    REQUIRE(toy::key_bytes(store, whole.handle, stream).size() == std::size_t(prompt / 4 * 132));
    REQUIRE(toy::key_bytes(store, whole.handle, stream) == toy::key_bytes(store, cut.handle, stream));
  }
  REQUIRE(select.request_refresh(whole.handle) == status::ok);
  REQUIRE(select.request_refresh(cut.handle) == status::ok);
  for (int i = 0; i < 40; ++i) {
    REQUIRE(engine.step(whole) == status::ok);
    const auto scores = select.last_scores();
    const std::vector<float> first(scores.data, scores.data + scores.shape[0]);
    REQUIRE(engine.step(cut) == status::ok);
    const auto again = select.last_scores();
    REQUIRE(first == std::vector<float>(again.data, again.data + again.shape[0]));
    REQUIRE(toy::resident_ids(store, whole.handle) == toy::resident_ids(store, cut.handle));
  }
}
