// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <cstring>

#include "tests/catch.hpp"
#include "tests/support/small_dual_encoder.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

struct bench {
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store store{toy::store_options(geometry)};
  fm::dual_encoder_indexer index{toy::small_dual_encoder(3)};
  fm::selection_policy policy;
  fm::selector_options options;
  bench() {
    policy.interval = 8;
    policy.hysteresis = 0.5f;
    policy.fallback.max_dropped = 0.25f;
    options.max_rollback_tokens = 12;
  }
  fm::sequence_options sequence() const { return fm::sequence_options_for(policy, geometry, 800); }
};

/// Whether a chunk was still in the fast tier may differ: forks share slots.
bool same(const fm::selection_report& a, const fm::selection_report& b) {
  return a.reason == b.reason && a.position == b.position && a.complete_chunks == b.complete_chunks &&
         a.budget == b.budget && a.plan.chunks == b.plan.chunks && a.plan.above == b.plan.above &&
         a.plan.above_dropped == b.plan.above_dropped && a.recall.selected == b.recall.selected &&
         a.recall.refused == b.recall.refused && a.stage == b.stage && a.refreshes == b.refreshes;
}

}  // namespace

TEST_CASE("a sequence goes on from a saved state as if nothing had happened", "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  const std::int64_t prompt = GENERATE(1, 6, 150);
  const int steps = GENERATE(0, 5, 13);
  CAPTURE(prompt, steps);
  fm::selection_policy own = b.policy;
  own.interval = 5;
  const bool with_own = GENERATE(false, true);
  auto s = engine.open(b.sequence(), 8, with_own ? &own : nullptr);
  REQUIRE(engine.step(s, prompt) == status::ok);
  for (int i = 0; i < steps; ++i) REQUIRE(engine.step(s) == status::ok);

  const std::vector<std::byte> state = select.save_state(s.handle);
  auto twin = s;
  twin.handle = b.store.fork(s.handle, b.sequence());
  fm::selector other(b.store, b.index, b.policy, b.options);
  toy::engine again(b.store, other);
  other.load_state(twin.handle, state.data(), state.size());
  CHECK(other.save_state(twin.handle) == state);
  for (int i = 0; i < 40; ++i) {
    REQUIRE(engine.step(s) == status::ok);
    REQUIRE(again.step(twin) == status::ok);
    fm::selection_report x, y;
    REQUIRE(select.report(s.handle, &x) == status::ok);
    REQUIRE(other.report(twin.handle, &y) == status::ok);
    REQUIRE(same(x, y));
    REQUIRE(toy::resident_ids(b.store, s.handle) == toy::resident_ids(b.store, twin.handle));
    for (std::int32_t stream = 0; stream < 3; ++stream)
      REQUIRE(toy::key_bytes(b.store, s.handle, stream) == toy::key_bytes(b.store, twin.handle, stream));
  }
}

TEST_CASE("a state with any byte changed, cut short or with more behind it is refused", "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(b.sequence(), 8);
  REQUIRE(engine.step(s, 3) == status::ok);
  const std::vector<std::byte> state = select.save_state(s.handle);
  select.detach(s.handle);
  const auto refuses = [&](const std::vector<std::byte>& bytes, std::size_t size) {
    REQUIRE_THROWS_AS(select.load_state(s.handle, bytes.data(), size), fm::format_error);
    fm::selection_report r;
    REQUIRE(select.report(s.handle, &r) == status::unknown_sequence);
  };
  for (std::size_t i = 0; i < state.size(); ++i) {
    CAPTURE(i);
    auto damaged = state;
    damaged[i] ^= std::byte{0x40};
    refuses(damaged, damaged.size());
  }
  for (std::size_t size = 0; size < state.size(); ++size) refuses(state, size);
  auto longer = state;
  longer.push_back({});
  refuses(longer, longer.size());
  CHECK_THROWS_AS(select.load_state(s.handle, nullptr, 0), fm::format_error);
  CHECK_NOTHROW(select.load_state(s.handle, state.data(), state.size()));
  CHECK_THROWS_AS(select.load_state(s.handle, state.data(), state.size()), fm::argument_error);
}

TEST_CASE("a state that was made up with a right checksum is still checked field by field",
          "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(b.sequence(), 8);
  REQUIRE(engine.step(s, 30) == status::ok);
  const std::vector<std::byte> state = select.save_state(s.handle);
  select.detach(s.handle);
  int accepted = 0;
  for (std::size_t i = 0; i + 8 < state.size(); ++i)
    for (const int value : {0x00, 0x7f, 0x80, 0xff}) {
      auto forged = state;
      forged[i] = std::byte(value);
      const std::uint64_t sum = XXH3_64bits(forged.data(), forged.size() - 8);
      std::memcpy(forged.data() + forged.size() - 8, &sum, 8);
      try {
        select.load_state(s.handle, forged.data(), forged.size());
        select.detach(s.handle);
        ++accepted;
      } catch (const fm::format_error&) {
      }
      fm::selection_report r;
      REQUIRE(select.report(s.handle, &r) == status::unknown_sequence);
    }
  CHECK(accepted > 0);  // rows and reports may hold anything
}

TEST_CASE("a state does not fit another selector or another sequence", "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(b.sequence(), 8), t = engine.open(b.sequence(), 9);
  REQUIRE(engine.step({&s, &t}, {50, 20}) == status::ok);
  const std::vector<std::byte> state = select.save_state(s.handle);
  select.detach(t.handle);
  CHECK_THROWS_AS(select.load_state(t.handle, state.data(), state.size()), fm::format_error);
  CHECK_THROWS_AS(select.load_state({}, state.data(), state.size()), fm::error);
  select.detach(s.handle);

  SECTION("another rollback") {
    b.options.max_rollback_tokens = 13;
    fm::selector other(b.store, b.index, b.policy, b.options);
    CHECK_THROWS_AS(other.load_state(s.handle, state.data(), state.size()), fm::format_error);
  }
  SECTION("another indexer") {
    auto config = toy::small_dual_encoder(3);
    config.retrievers[0].query_layer = 0;
    config.retrievers[1].query_layer = 0;
    fm::dual_encoder_indexer index(config);
    fm::selector other(b.store, index, b.policy, b.options);
    CHECK_THROWS_AS(other.load_state(s.handle, state.data(), state.size()), fm::format_error);
  }
  SECTION("another sink") {
    b.policy.sink_chunks = 2;
    fm::selector other(b.store, b.index, b.policy, b.options);
    CHECK_THROWS_AS(other.load_state(s.handle, state.data(), state.size()), fm::format_error);
  }
  SECTION("a rollback since within reach is fine, one beyond it is not") {
    fm::selector other(b.store, b.index, b.policy, b.options);
    REQUIRE(b.store.truncate(s.handle, 38) == status::ok);
    CHECK_NOTHROW(other.load_state(s.handle, state.data(), state.size()));
    other.detach(s.handle);
    REQUIRE(b.store.truncate(s.handle, 37) == status::ok);
    CHECK_THROWS_AS(other.load_state(s.handle, state.data(), state.size()), fm::format_error);
  }
}
